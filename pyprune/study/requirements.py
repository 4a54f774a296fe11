"""What a comparison asks of texts, model and memory, checked before the slow part."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from torch import Tensor

from pyprune import pruning
from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.models.sizes import kv_bytes_per_position
from pyprune.pruning.budget import depth_count
from pyprune.pruning.width import dry_run
from pyprune.runtime import memory
from pyprune.scoring import calibration as texts
from pyprune.scoring.calibration.sources import Source
from pyprune.study.config import CompareConfig


class ReadTexts(NamedTuple):
    """The calibration text and the held-out one where checking them took reading them, else None."""

    calibration: Source | None
    held_out: Source | None


def check_texts(spec: Any, config: CompareConfig) -> ReadTexts:
    """Raise InputError for texts that are missing, or one text for calibration and evaluation; what was read for it."""
    random_model = isinstance(spec, str) and spec.startswith("shape:")
    calibration = config.calibration

    def read(option: str, path: str | os.PathLike[str] | None, field: str | None) -> Source | None:
        if path is None and (random_model or isinstance(spec, Decoder)):
            return None
        return texts.require_text(path, option, field)

    sources = ReadTexts(
        read("--text", calibration.text, calibration.field),
        read("--eval-text", config.eval_text, None),
    )
    held_out = config.eval_text or texts.EVALUATION
    if texts.same_text(calibration.text or texts.CALIBRATION, held_out):
        raise InputError(f"--eval-text {held_out}: is the calibration text; another text is expected")
    return sources


def check_model(decoder: Decoder, config: CompareConfig) -> None:
    """Raise InputError when the model cannot be compared so: context, ratios, evaluations or memory."""
    check_positions(decoder, config)
    check_ratios(decoder, config)
    for evaluation in config.evaluations:
        if "tokenizer" in evaluation.needs and decoder.tokenizer_source is None:
            raise InputError(f"{decoder.name}: has no tokenizer, which the evaluation {evaluation.name} needs")
    check_memory(decoder, config)


def check_positions(decoder: Decoder, config: CompareConfig) -> None:
    """Raise InputError when the model's context is shorter than what timing, calibration or an evaluation needs."""
    protocol, seq_len = config.timing, config.calibration.seq_len
    window = protocol.evaluation_window if any("windows" in e.needs for e in config.evaluations) else 0
    needed = max(protocol.input_tokens + max(protocol.output_tokens), window, seq_len)
    if needed > decoder.max_positions:
        raise InputError(
            f"{decoder.name}: a context of {decoder.max_positions} tokens; the protocol {protocol.name} with seq-len "
            f"{seq_len} needs {needed}"
        )


def check_ratios(decoder: Decoder, config: CompareConfig) -> None:
    """Raise InputError when some ratio has no depth-pruned form of this model, or no width of the same size."""
    for name in config.ratios:
        ratio = pruning.parse_ratio(str(name))
        depth_count(decoder, ratio)
        for method in config.methods:
            dry_run(decoder, method, ratio=ratio)


def check_memory(decoder: Decoder, config: CompareConfig) -> None:
    """Raise InputError, with both numbers, when all rows and their caches together will not fit into free memory."""
    needed = needed_bytes(decoder, config)
    available = memory.available(decoder.device)
    if available is not None and needed > available:
        raise InputError(
            f"{decoder.name}: the comparison needs about {needed} bytes more and {available} are available on "
            f"{decoder.device}; "
            "fewer ratios, a smaller batch or a smaller model is expected"
        )


def needed_bytes(decoder: Decoder, config: CompareConfig) -> int:
    """An upper estimate of what the comparison allocates beyond the loaded model.

    For timing: the model in the timed dtype, two narrowed copies a ratio and width method, and for all rows a cache and
    logits; the depth row shares the original's weights. Scoring plans its own memory.
    """
    protocol, dtype, batch = config.timing, config.torch_dtype, max(config.batches)
    narrowed = 2 * len(config.ratios) * len(config.methods)
    rows = 1 + len(config.ratios) + narrowed
    length = protocol.input_tokens + max(protocol.output_tokens)
    caches = rows * batch * length * kv_bytes_per_position(decoder) // decoder.dtype.itemsize * dtype.itemsize
    logits = 2 * max(batch, 8) * protocol.evaluation_window * decoder.vocab_size * 4
    copies = (0 if decoder.dtype == dtype else 1) + narrowed
    return copies * decoder.parameters() * dtype.itemsize + caches + logits


def prompts_from(evaluation: Tensor, batch: int, tokens: int) -> Tensor:
    """`[batch, tokens]` prompts, one after the other from the evaluation text."""
    ids = evaluation.flatten()
    if len(ids) < batch * tokens:
        raise InputError(
            f"batch {batch}: the evaluation text has {len(ids)} tokens, and {batch} prompts of {tokens} need "
            f"{batch * tokens}"
        )
    return ids[: batch * tokens].view(batch, tokens)
