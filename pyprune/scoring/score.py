"""`score`: the scores of a model's units by any criterion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.load_any import AnyDecoder, as_any_decoder
from pyprune.progress import Progress
from pyprune.pruning.depth import protected_blocks
from pyprune.scoring.criteria import criterion_named
from pyprune.scoring.measures import measure_names
from pyprune.scoring.perplexity import check_labels, check_samples, measured_scores
from pyprune.scoring.scores import Scores


def score(
    model: Any,
    input_ids: Tensor | None = None,
    criterion: str = "ppl",
    unit: str = "block",
    attention_mask: Tensor | None = None,
    *,
    candidates: Any = None,
    measure: str | Sequence[str] | None = None,
    labels: Tensor | None = None,
    protect: Iterable[int] | str | None = None,
    calibration: dict[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Scores:
    """The score of each unit by a criterion, or of each candidate by a measure: the lower, the more removable, or the
    better.

    model: a decoder, a loaded PreTrainedModel (left unchanged; of any family, `load_any`), or whatever
    `pyprune.load_any` takes. input_ids: `[S, T]`, S samples of T >= 2 tokens; None for criteria of weights or positions
    only. criterion: a name in
    `pyprune.scoring.criteria.CRITERIA`; "ppl" is the perplexity of the model without each unit, equal to one forward
    pass per removed unit within float32 rounding. unit: "block", "mha", "ffn" or "mha+ffn" (both kinds of sublayers
    ranked together). candidates: changes of the model to be scored instead of units, each as if it were the model: a
    list (or a mapping from names) of `Pruning`s, and of mappings from (block, "mha" or "ffn" or "block") to what stands
    there: None, a module or function that gives what is added to the residual stream `[N, T, hidden]`, a vector that is
    added, a Linear, MHA or FFN; `values` are in their order. measure: "ppl", "kl", "cosine", "top1", "task-loss",
    "finercut" (`pyprune.scoring.measures`), or several, of which the first makes the `values` and all the `measures`.
    labels: `[S, T]`, for "task-loss", -100 where none is. attention_mask: `[S, T]`, 0 where a token is padding.
    protect: blocks that must stay, as in `pyprune.depth`: scored, but last in the order. calibration: the fingerprint
    to keep with the result (made from `input_ids` when None). progress: called with (steps done, steps in all).
    options: those of the criterion; for "ppl" memory, the bytes that may be taken beyond the model (what is free when
    None): the work is split to stay within them, which does not change the result.

    Raises InputError for an unknown criterion, unit, measure or option, a candidate that does not fit the model, ids
    outside the vocabulary, no predicted position, or a memory in which not even one candidate fits.
    Source: Shortened LLaMA, section 3.1, for "ppl", "magnitude" and "taylor"; docs/reference/criteria.md for all.
    """
    by_name = criterion_named(criterion)
    set_options = {name: value for name, value in options.items() if value is not None}
    by_name.check(unit, set_options)
    decoder = as_any_decoder(model)
    protected = protected_blocks(protect, [block.index for block in decoder.sizes().blocks])
    if candidates is not None or measure is not None or labels is not None:
        if candidates is not None and (unit != "block" or protect is not None):
            refused = f"unit: {unit!r}" if unit != "block" else f"protect: {protect!r}"
            raise InputError(f"{refused} given, but candidates say themselves what they change")
        scores = _measured(
            decoder, input_ids, criterion, unit, attention_mask, candidates, measure, labels, set_options,
            calibration=calibration, progress=progress,
        )  # fmt: skip
        return scores if candidates is not None else _protecting(scores, protected)
    ids = mask = None
    if by_name.needs != "nothing":
        if input_ids is None:
            raise InputError(f"input_ids: None given, but criterion {criterion} needs token ids [samples, tokens]")
        ids, mask = check_samples(decoder, input_ids, attention_mask)
    scores = by_name.measure(decoder, ids, mask, unit, calibration=calibration, progress=progress, **set_options)
    return _protecting(scores, protected)


def _measured(
    decoder: AnyDecoder,
    input_ids: Tensor | None,
    criterion: str,
    unit: str,
    attention_mask: Tensor | None,
    candidates: Any,
    measure: str | Sequence[str] | None,
    labels: Tensor | None,
    options: dict[str, Any],
    **reporting: Any,
) -> Scores:
    """Scores of candidates, or of units by other measures than perplexity alone."""
    names = measure_names(measure)
    argument = "candidates" if candidates is not None else "measure" if measure is not None else "labels"
    if criterion != "ppl":
        raise InputError(f"criterion: {criterion!r} given, but {argument} goes with 'ppl', which runs the model")
    if input_ids is None:
        raise InputError("input_ids: None given, but measures need token ids [samples, tokens]")
    if labels is not None and "task-loss" not in names:
        raise InputError(f"labels: given, but measure {', '.join(names)} reads none; task-loss does")
    ids, mask = check_samples(decoder, input_ids, attention_mask)
    checked = None if labels is None else check_labels(decoder.vocab_size, ids, mask, labels)
    return measured_scores(
        decoder, ids, mask, names, unit=unit, candidates=candidates, labels=checked, **reporting, **options
    )


def _protecting(scores: Scores, protected: frozenset[int]) -> Scores:
    return replace(scores, protected=[(kind, index) for kind, index in scores.units if index in protected])
