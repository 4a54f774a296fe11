"""The fingerprint of calibration tokens: their hash, and where they came from."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy
import torch

DEFAULTS = {"packing": "packed", "bos": "none"}
"""What a fingerprint leaves out, so that those of the contract's plain rule stay as they are."""


def fingerprint(
    input_ids: torch.Tensor | numpy.ndarray,
    seed: int | list[int] | None = None,
    source: str | None = None,
    **rules: str,
) -> dict[str, Any]:
    """SHA-256 of the little-endian int64 ids of windows `[samples, seq_len]`, their sizes, seed and source.

    rules: `packing` and `bos`, recorded where they are not the default ones.
    """
    ids = numpy.ascontiguousarray(numpy.asarray(input_ids), dtype="<i8")
    samples, seq_len = ids.shape
    digest = hashlib.sha256(ids.tobytes()).hexdigest()
    non_default = {name: rule for name, rule in rules.items() if rule != DEFAULTS[name]}
    return {"sha256": digest, "samples": samples, "seq_len": seq_len, "seed": seed, "source": source, **non_default}
