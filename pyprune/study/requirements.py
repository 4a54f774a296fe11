"""What a comparison asks of texts, model and memory, checked before the slow part."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from torch import Tensor

from pyprune import pruning
from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.models.load import load_sizes
from pyprune.pruning.width import dry_run
from pyprune.runtime import memory
from pyprune.scoring import calibration as texts
from pyprune.scoring.calibration.sources import Source
from pyprune.study.config import CompareConfig, checkpoint_pairs


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
    check_alike(decoder, config)
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
        for choice in config.depth_choices:
            choice.check_model(decoder, ratio)
        for method in config.methods:
            dry_run(decoder, method, ratio=ratio)


def check_checkpoints(config: CompareConfig) -> None:
    """Raise InputError for a checkpoint that cannot be read, as far as its configuration tells."""
    for name, spec in checkpoint_pairs(config.checkpoints):
        try:
            load_sizes(spec)
        except InputError as error:
            raise InputError(f"--with {name}: {error}") from None


def check_alike(decoder: Decoder, config: CompareConfig) -> None:
    """Raise InputError for a checkpoint that cannot take the same tokens, or as many of them."""
    for name, spec in checkpoint_pairs(config.checkpoints):
        sizes = load_sizes(spec)
        if sizes.vocab_size != decoder.vocab_size:
            raise InputError(
                f"--with {name}: a vocabulary of {sizes.vocab_size}; the {decoder.vocab_size} of {decoder.name} are"
                " expected, for all rows read the same tokens"
            )
        check_positions(sizes, config)


def check_memory(decoder: Decoder, config: CompareConfig) -> None:
    """Raise InputError, with both numbers, when not even the original in the timed dtype will fit into free memory.
    What else does not fit is a row that says so."""
    needed = needed_bytes(decoder, config)
    available = memory.available(decoder.device)
    if available is not None and needed > available:
        raise InputError(
            f"{decoder.name}: the comparison needs about {needed} bytes more for the original in {config.dtype} alone "
            f"and {available} are available on {decoder.device}; a smaller model is expected"
        )


def needed_bytes(decoder: Decoder, config: CompareConfig) -> int:
    """What the original takes beyond the loaded model: a copy in the timed dtype, if that is another one, and the
    logits of an evaluation. Scoring plans its own memory."""
    copy = 0 if decoder.dtype == config.torch_dtype else decoder.parameters() * config.torch_dtype.itemsize
    return copy + 16 * config.timing.evaluation_window * decoder.vocab_size * 4


def prompts_from(evaluation: Tensor, batch: int, tokens: int) -> Tensor:
    """`[batch, tokens]` prompts, one after the other from the evaluation text, which begins again where it ends."""
    ids = evaluation.flatten()
    times = -(-batch * tokens // len(ids))
    return ids.repeat(times)[: batch * tokens].view(batch, tokens)
