"""`score`: the scores of a model's units by any criterion."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.load_any import as_any_decoder
from pyprune.progress import Progress
from pyprune.pruning.depth import protected_blocks
from pyprune.scoring.criteria import criterion_named
from pyprune.scoring.perplexity import check_samples
from pyprune.scoring.scores import Scores


def score(
    model: Any,
    input_ids: Tensor | None = None,
    criterion: str = "ppl",
    unit: str = "block",
    attention_mask: Tensor | None = None,
    *,
    protect: Iterable[int] | str | None = None,
    calibration: dict[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Scores:
    """The score of each unit by a criterion: the lower, the more removable the unit.

    model: a decoder, a loaded PreTrainedModel (left unchanged; of any family, `load_any`), or whatever `pyprune.load_any`
    takes. input_ids: `[S, T]`,
    S samples of T >= 2 tokens; None for criteria of weights or positions only. criterion: a name in
    `pyprune.scoring.criteria.CRITERIA`; "ppl" is the perplexity of the model without each unit, equal to one forward
    pass per removed unit within float32 rounding. unit: "block", "mha", "ffn" or "mha+ffn" (both kinds of sublayers
    ranked together). attention_mask: `[S, T]`, 0 where a token is padding. protect: blocks that must stay, as in
    `pyprune.depth`: scored, but last in the order. calibration: the fingerprint to keep with the result (made from
    `input_ids` when None). progress: called with (steps done, steps in all). options: those of the criterion; for "ppl"
    memory, the bytes that may be taken beyond the model (what is free when None): the work is split to stay within
    them, which does not change the result.

    Raises InputError for an unknown criterion, unit or option, ids outside the vocabulary, no predicted position, or a
    memory in which not even one candidate fits.
    Source: Shortened LLaMA, section 3.1, for "ppl", "magnitude" and "taylor"; docs/criteria.md for all.
    """
    by_name = criterion_named(criterion)
    set_options = {name: value for name, value in options.items() if value is not None}
    by_name.check(unit, set_options)
    decoder = as_any_decoder(model)
    ids = mask = None
    if by_name.needs != "nothing":
        if input_ids is None:
            raise InputError(f"input_ids: None given, but criterion {criterion} needs token ids [samples, tokens]")
        ids, mask = check_samples(decoder, input_ids, attention_mask)
    protected = protected_blocks(protect, [block.index for block in decoder.sizes().blocks])
    scores = by_name.measure(decoder, ids, mask, unit, calibration=calibration, progress=progress, **set_options)
    return replace(scores, protected=[(kind, index) for kind, index in scores.units if index in protected])
