"""Perplexity of one decoder, and of every "decoder without unit n" or other candidate at once.

The paper's criterion (Shortened LLaMA, section 3.1, PPL) runs the whole model once for each unit that might go. Here
all of them go together (`pyprune.scoring.layer_major`): prefixes are shared, every block's weights are read once, and
the head's logits are summed tile by tile without being stored. Other measures come from the same pass.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.load_any import AnyDecoder, as_any_decoder
from pyprune.models.pruning import original_name
from pyprune.progress import Progress
from pyprune.runtime.inputs import bool_mask, check_ids
from pyprune.scoring.as_layered import as_layered
from pyprune.scoring.calibration import fingerprint
from pyprune.scoring.candidates import CandidateSet, candidate_set
from pyprune.scoring.edits import NO_EDITS
from pyprune.scoring.evaluator import Evaluator
from pyprune.scoring.journal import tensor_digest
from pyprune.scoring.losses import IGNORED
from pyprune.scoring.measures import Samples, chosen_measures
from pyprune.scoring.open_evaluator import open_evaluator
from pyprune.scoring.removals import NO_REMOVAL, Removal, removal_of, units_of
from pyprune.scoring.scores import CANDIDATE, Measured, Scores


def perplexity_scores(
    decoder: AnyDecoder,
    input_ids: Tensor,
    mask: Tensor | None,
    unit: str,
    *,
    calibration: dict[str, Any] | None = None,
    progress: Progress | None = None,
    memory: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    distributed: bool | None = None,
) -> Scores:
    """Perplexity without each unit, on checked samples: `measured_scores` by perplexity."""
    return measured_scores(
        decoder, input_ids, mask, ("ppl",), unit=unit, calibration=calibration, progress=progress, memory=memory,
        resume=resume, distributed=distributed,
    )  # fmt: skip


def measured_scores(
    decoder: AnyDecoder,
    input_ids: Tensor,
    mask: Tensor | None,
    measures: Sequence[str],
    *,
    unit: str = "block",
    candidates: object = None,
    labels: Tensor | None = None,
    calibration: dict[str, Any] | None = None,
    progress: Progress | None = None,
    memory: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    distributed: bool | None = None,
) -> Scores:
    """What the measures of these names give for the model without each unit, or for each candidate, on checked samples.

    unit: "block", "mha", "ffn" or "mha+ffn". candidates: as in `candidate_set`, instead of units. labels: checked.
    memory: bytes that may be taken beyond the model; what is free when None. resume, distributed: as in
    `open_evaluator`.
    """
    model = as_layered(decoder)
    chosen = chosen_measures(measures, Samples(input_ids, mask, labels))
    settings: dict[str, Any] = {}
    if labels is not None:
        settings["labels"] = tensor_digest(labels)
    unit_parameters: dict[tuple[str, int], int] | None = None
    if candidates is None:
        unit_parameters = units_of(decoder, unit)
        units = list(unit_parameters)
        edits, replacements, described = [removal_of(decoder, [kind]) for kind in units], {}, None
    else:
        unit, candidate_list = CANDIDATE, candidate_set(model, candidates)
        units = [(CANDIDATE, number) for number in range(len(candidate_list.edits))]
        edits, replacements, described = candidate_list.edits, candidate_list.replacements, candidate_list.described
        settings["replacements"] = _digests(candidate_list, resume is not None)
    work = f"score {'+'.join(measures)} {unit}"
    with open_evaluator(
        model, input_ids, mask, work, measures=chosen, replacements=replacements, settings=settings, memory=memory,
        resume=resume, distributed=distributed,
    ) as evaluator:  # fmt: skip
        values = evaluator.values([NO_EDITS, *edits], progress)
    measured = {name: Measured(baseline, rest) for name, (baseline, *rest) in zip(measures, values, strict=True)}
    return Scores(
        model=original_name(decoder),
        criterion=measures[0],
        unit=unit,
        baseline=measured[measures[0]].baseline,
        units=units,
        values=measured[measures[0]].values,
        calibration=calibration or fingerprint(input_ids),
        parameters=decoder.sizes().parameters(),
        unit_parameters=None if unit_parameters is None else list(unit_parameters.values()),
        measures=measured if len(measures) > 1 else {},
        candidates=described,
    )


def _digests(candidates: CandidateSet, resumable: bool) -> list[str | None]:
    """What identifies the replacements in a journal; InputError where it cannot and has to."""
    digests = candidates.digests()
    if resumable and None in digests:
        raise InputError(
            "resume: a candidate holds a function, which a journal cannot recognise; modules, sublayers, tensors"
            " and prunings are accepted"
        )
    return digests


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


def check_samples(
    decoder: AnyDecoder, input_ids: Tensor, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
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


def check_labels(vocab_size: int, input_ids: Tensor, mask: Tensor | None, labels: object) -> Tensor:
    """Labels int64 `[S, T]`, -100 where none is or either of a token and the one before it is padding; InputError for
    another shape and for ids outside the vocabulary."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != input_ids.shape:
        given = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(f"labels: {given} given; token ids {list(input_ids.shape)}, -100 for none, are expected")
    checked = labels.to(input_ids.device, torch.int64)
    outside = checked[(checked != IGNORED) & ((checked < 0) | (checked >= vocab_size))]
    if outside.numel():
        raise InputError(
            f"labels: token id {int(outside[0])} given; 0 to {vocab_size - 1}, or {IGNORED} for none, are accepted"
        )
    if mask is None:
        return checked
    predicted = mask.clone()
    predicted[:, 1:] &= mask[:, :-1]
    return checked.masked_fill(~predicted, IGNORED)
