"""Perplexity of one decoder, and of every "decoder without unit n" at once.

The paper's criterion (Shortened LLaMA, section 3.1, PPL) runs the whole model once for each unit that might go. Here
all of them go together (`pyprune.scoring.layer_major`): prefixes are shared, every block's weights are read once, and
the head's logits are summed tile by tile without being stored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.load_any import AnyDecoder, as_any_decoder
from pyprune.models.pruning import original_name
from pyprune.progress import Progress
from pyprune.runtime.inputs import bool_mask, check_ids
from pyprune.scoring.calibration import fingerprint
from pyprune.scoring.evaluator import Evaluator
from pyprune.scoring.open_evaluator import open_evaluator
from pyprune.scoring.removals import NO_REMOVAL, Removal, removal_of, units_of
from pyprune.scoring.scores import Scores


def perplexity_scores(
    decoder: AnyDecoder,
    input_ids: Tensor,
    mask: Tensor | None,
    unit: str,
    *,
    calibration: dict[str, Any] | None = None,
    memory: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    distributed: bool | None = None,
    progress: Progress | None = None,
) -> Scores:
    """The perplexity without each unit, on checked samples; `score`'s criterion "ppl".

    unit: "block", "mha", "ffn" or "mha+ffn". memory: bytes that may be taken beyond the model; what is free when None.
    resume, distributed: as in `open_evaluator`.
    """
    unit_parameters = units_of(decoder, unit)
    removals = [NO_REMOVAL, *(removal_of(decoder, [candidate]) for candidate in unit_parameters)]
    work = f"score ppl {unit}"
    with open_evaluator(
        decoder, input_ids, mask, work, memory=memory, resume=resume, distributed=distributed
    ) as evaluator:
        baseline, *values = evaluator.perplexities(removals, progress)
    sizes = decoder.sizes()
    return Scores(
        model=original_name(decoder),
        criterion="ppl",
        unit=unit,
        baseline=baseline,
        units=list(unit_parameters),
        values=values,
        calibration=calibration or fingerprint(input_ids),
        parameters=sizes.parameters(),
        unit_parameters=list(unit_parameters.values()),
    )


def perplexities(
    decoder: AnyDecoder,
    input_ids: Tensor,
    mask: Tensor | None,
    removals: Sequence[Removal],
    *,
    memory: int | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """exp(mean NLL) of the decoder without each of these removals, on checked samples, within `memory` bytes."""
    return Evaluator(decoder, input_ids, mask, memory=memory).perplexities(removals, progress)


def perplexity(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    memory: int | None = None,
    progress: Progress | None = None,
) -> float:
    """exp(mean negative log-likelihood) over all predicted positions of `input_ids [S, T]`, T >= 2.

    Errors as in `score`. progress: called with (steps done, steps in all).
    """
    decoder = as_any_decoder(model)
    input_ids, mask = check_samples(decoder, input_ids, attention_mask)
    return perplexities(decoder, input_ids, mask, [NO_REMOVAL], memory=memory, progress=progress)[0]


def check_samples(decoder: AnyDecoder, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Ids `[S, T]`, padding as 0, and the mask as bool `[S, T]` or None; InputError for what cannot be scored."""
    mask = None if attention_mask is None else bool_mask(input_ids, attention_mask)
    if mask is not None:
        input_ids = input_ids.masked_fill(~mask, 0)
    check_ids(input_ids, decoder.vocab_size)
    tokens = input_ids.shape[1]
    if tokens < 2:
        raise InputError(f"input_ids: {tokens} token a sample given; at least 2 are needed to predict one")
    if tokens > decoder.max_positions:
        raise InputError(
            f"input_ids: {tokens} tokens a sample given; up to {decoder.max_positions}, the model's context, are"
            " accepted"
        )
    if mask is not None and not bool((mask[:, 1:] & mask[:, :-1]).any()):
        raise InputError("attention_mask: no token follows another one; at least one predicted position is needed")
    return input_ids, mask
