"""`search`: one way in for every way of choosing what goes together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from pyprune.errors import InputError
from pyprune.models import as_decoder
from pyprune.pruning.pruning import original_name
from pyprune.scoring.calibration import fingerprint
from pyprune.scoring.evaluator import Evaluator, Progress
from pyprune.scoring.perplexity import check_samples
from pyprune.scoring.score import score
from pyprune.scoring.searches.candidates import Candidates, Ranker
from pyprune.scoring.searches.greedy import greedy
from pyprune.scoring.searches.one_shot import one_shot
from pyprune.scoring.searches.result import SearchResult, Unit
from pyprune.scoring.searches.window import window, windows_of

METHODS = ("one-shot", "greedy", "window")


def search(
    model: Any,
    input_ids: Tensor,
    method: str = "greedy",
    *,
    count: int | None = None,
    ratio: float | None = None,
    unit: str = "block",
    protect: Iterable[int] | str | None = None,
    criterion: str = "ppl",
    attention_mask: Tensor | None = None,
    calibration: dict[str, Any] | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Choose units to remove together, and tell the perplexity after every step.

    method: "one-shot" ranks all units once (Shortened LLaMA, section 3.2); "greedy" scores what is left again after
    each removal (SLEB for blocks, BlockPruner for "mha+ffn"); "window" removes the blocks in a row that cost least
    together (Gromov et al.). Exactly one of count (units) and ratio (share of all parameters; the number of units that
    comes nearest) is given. unit, attention_mask, calibration, memory and progress as in `score`; states that later
    rounds begin with are kept in what memory leaves. protect as in `depth`. criterion: what a one-shot ranking
    goes by; steps are told in perplexity whatever it is.

    Raises InputError for an unknown method, unit or criterion, an amount that cannot be had, and as `score` does.
    """
    if method not in METHODS:
        raise InputError(f"method: {method!r} given; {', '.join(METHODS)} are accepted")
    if method == "window" and unit != "block":
        raise InputError(f"unit: {unit!r} given; a window is of blocks: 'block' is accepted")
    if method != "one-shot" and criterion != "ppl":
        raise InputError(f"criterion: {criterion!r} given; 'ppl' is accepted for the method {method!r}")
    decoder = as_decoder(model)
    candidates = Candidates.of(decoder, unit, protect, count, ratio)
    if method == "window":
        windows_of(candidates)
    ids, mask = check_samples(decoder, input_ids, attention_mask)

    def ranked(choices: list[tuple[Unit, ...]]) -> list[float]:
        found = score(decoder, ids, criterion, unit, mask, calibration=calibration, memory=memory)
        values = dict(zip(found.units, found.values, strict=True))
        return [values[one] for (one,) in choices]

    ranker: Ranker | None = None if criterion == "ppl" else ranked
    evaluator = Evaluator(decoder, ids, mask, memory=memory, search=method == "greedy")
    if method == "greedy":
        baseline, steps = greedy(evaluator, candidates, progress)
    else:
        baseline, steps = {"one-shot": one_shot, "window": window}[method](evaluator, candidates, ranker, progress)
    return SearchResult(
        model=original_name(decoder),
        method=method,
        criterion=criterion,
        unit=unit,
        baseline=baseline,
        steps=tuple(steps),
        parameters=candidates.parameters,
        cost=evaluator.passes,
        naive=evaluator.naive,
        calibration=calibration or fingerprint(ids),
    )
