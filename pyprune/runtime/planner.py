"""How much memory a model will take, before anything is loaded."""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pyprune.checks import is_whole
from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.models.load import load_sizes
from pyprune.runtime.engine import DEFAULT_LENGTH, MAX_BATCH, PREFILL_CHUNK
from pyprune.runtime.footprint import cache_bytes, weight_bytes, workspace_bytes
from pyprune.runtime.skip import Skip, skip_plan
from pyprune.runtime.weight_formats import converted_bytes, converting_bytes, require_format


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a loaded model and an `Engine` for it allocate, in use up to its full length.

    weights: every tensor of the decoder, a tied head once. cache: keys and values of all blocks. workspace: RoPE tables
    and the most that a chunk of prefill or a decode step holds. untouched: the part of `cache` that belongs to
    attention which `skip` leaves out; it is allocated, but a CPU's operating system never provides it. making: where
    the engine stores the weights in another format, what is there while it does: the loaded ones beside theirs.
    """

    weights: int
    cache: int
    workspace: int
    untouched: int = 0
    making: int = 0

    @property
    def total(self) -> int:
        """Bytes allocated. The Python process and its libraries come on top (docs/reference/memory.md)."""
        return self.weights + self.cache + self.workspace

    @property
    def most(self) -> int:
        """Bytes that have to be there: those in use, or those that are needed to begin."""
        return max(self.total - self.untouched, self.making)

    def to_dict(self) -> dict[str, int]:
        """All figures by name, the total included."""
        return {**asdict(self), "total": self.total}


def default_length(decoder: Decoder) -> int:
    """Tokens for which an engine has room unless `max_len` says otherwise."""
    return min(decoder.max_positions, DEFAULT_LENGTH)


def plan_memory(
    model: Any,
    batch: int = 1,
    length: int | None = None,
    dtype: torch.dtype | str | None = None,
    skip: Skip = None,
    weight_format: str | None = None,
    device: torch.device | str | None = None,
    compress: bool | None = None,
) -> MemoryPlan:
    """The memory of `Engine(load(model, dtype, device), max_batch=batch, max_len=length)`, from sizes alone.

    model: whatever `load` takes; only its configuration is read. length: prompt and new tokens together (default: as
    the engine's). skip: what is left out at run time, as for `Engine.generate`; its weights stay. weight_format,
    compress: as for `Engine`, once nobody else holds the decoder that the weights came from. device: "cpu" or "cuda",
    which need not be there (default: where a given decoder lies, else a CPU). On a GPU what lies between rows of odd
    width counts, and the workspace is an estimate.
    InputError for a model that cannot be read, a batch or a length that the engine or the model does not take, and a
    skip that names what is not there, and a weight format that these weights cannot have.
    """
    decoder = model.sizes() if isinstance(model, Decoder) and dtype is None else load_sizes(model, dtype)
    length = default_length(decoder) if length is None else length
    if not is_whole(batch) or not 1 <= operator.index(batch) <= MAX_BATCH:
        raise InputError(f"batch {batch}: 1 to {MAX_BATCH} is accepted")
    if not is_whole(length) or not 1 <= operator.index(length) <= decoder.max_positions:
        raise InputError(f"length {length}: 1 to {decoder.max_positions}, the context of {decoder.name}, is accepted")
    batch, length = operator.index(batch), operator.index(length)
    kind = _kind(decoder, device)
    stored_as = require_format(decoder, weight_format, compress, kind)
    plan = skip_plan(decoder, skip)
    plain = weight_bytes(decoder, kind == "cuda")
    cache = cache_bytes(decoder, batch, length)
    return MemoryPlan(
        weights=converted_bytes(decoder, stored_as) if stored_as else plain,
        cache=cache,
        workspace=workspace_bytes(decoder, batch, length, plan, PREFILL_CHUNK, stored_as, kind == "cuda"),
        untouched=cache - cache_bytes(decoder, batch, length, plan),
        making=plain + converting_bytes(decoder, stored_as) if stored_as else 0,
    )


def _kind(decoder: Decoder, device: torch.device | str | None) -> str:
    """The type of device that is planned for; InputError unless it is cpu or cuda."""
    if device is None:
        return "cuda" if decoder.device.type == "cuda" else "cpu"
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        kind = None
    if kind not in ("cpu", "cuda"):
        raise InputError(f"device {device}: cpu or cuda is accepted")
    return kind
