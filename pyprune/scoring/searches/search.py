"""`search`: choose units to remove together, by any method."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.load_any import AnyDecoder, as_any_decoder
from pyprune.models.pruning import original_name
from pyprune.progress import Progress
from pyprune.scoring.calibration import fingerprint
from pyprune.scoring.criteria import criterion_named
from pyprune.scoring.evaluator import Evaluator
from pyprune.scoring.open_evaluator import open_evaluator
from pyprune.scoring.perplexity import check_samples
from pyprune.scoring.score import score
from pyprune.scoring.searches.candidates import Candidates, Ranker
from pyprune.scoring.searches.greedy import greedy
from pyprune.scoring.searches.one_shot import one_shot
from pyprune.scoring.searches.result import SearchResult, Step, Unit
from pyprune.scoring.searches.window import window, windows_of
from pyprune.scoring.similarity import window_distances

METHODS = {"one-shot": None, "greedy": ("ppl",), "window": ("ppl", "angular", "block-influence")}
"""The ways to choose, and the criteria that each can go by (None: any)."""
WINDOW_OPTIONS = ("tokens", "variant", "memory")
"""What of a criterion's options a window's distance takes."""
SCORES = ".scores"
"""What the name of a criterion's own journal has behind that of the search."""


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
    resume: str | os.PathLike[str] | None = None,
    distributed: bool | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> SearchResult:
    """Choose units to remove together, with the perplexity after every step.

    method: "one-shot" ranks all units once (Shortened LLaMA, section 3.2); "greedy" scores what is left again after
    each removal (SLEB for blocks, BlockPruner for "mha+ffn"); "window" removes the blocks in a row that cost least
    together (Gromov et al.). Exactly one of count (units) and ratio (share of all parameters; the number of units that
    comes nearest) is given. unit, attention_mask, calibration, memory, resume, distributed and progress as in `score`
    by "ppl"; states that later rounds begin with are kept in what memory leaves. The journal of a criterion that keeps
    one lies beside `resume`, named as it with ".scores" behind. protect as in `pyprune.depth`.
    criterion: what the choice goes by, of any kind for "one-shot", "ppl", "angular" or "block-influence" for "window";
    options: its own.

    Raises InputError for an unknown method, unit or criterion, an amount that cannot be had, and as `score` does.
    """
    check_search(method, criterion, unit, options)
    decoder = as_any_decoder(model)
    candidates = Candidates.of(decoder, unit, protect, count, ratio)
    if method == "window":
        windows_of(candidates)
    ids, mask = check_samples(decoder, input_ids, attention_mask)
    ranker = None
    if criterion != "ppl":
        scores_journal = None if resume is None else f"{os.fspath(resume)}{SCORES}"
        shared = {"memory": memory, "distributed": distributed, "resume": scores_journal}
        taken = WINDOW_OPTIONS if method == "window" else criterion_named(criterion).options
        options = {name: value for name, value in shared.items() if value is not None and name in taken} | options
        ranker = partial(_RANKERS[method], decoder, ids, mask, criterion, unit, options)
    work = f"search {method} {criterion} {unit}"
    with open_evaluator(
        decoder, ids, mask, work, memory=memory, resume=resume, distributed=distributed, search=method == "greedy"
    ) as evaluator:
        baseline, steps = _METHODS[method](evaluator, candidates, ranker, progress)
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


def check_search(method: str, criterion: str, unit: str, options: dict[str, Any]) -> None:
    """Raise InputError for a search, criterion, unit or option that there is not, or that do not go together."""
    if method not in METHODS:
        raise InputError(f"method: {method!r} given; {', '.join(METHODS)} are accepted")
    accepted = METHODS[method]
    if accepted is not None and criterion not in accepted:
        raise InputError(f"criterion: {criterion!r} given; method {method} accepts {', '.join(accepted)}")
    criterion_named(criterion).check(unit, options)
    if method == "window" and unit != "block":
        raise InputError(f"unit: {unit!r} given; a window is of blocks: 'block' is accepted")
    for name in options if method == "window" else ():
        if name not in WINDOW_OPTIONS:
            raise InputError(f"{name}: {options[name]!r} given; of options, a window takes {', '.join(WINDOW_OPTIONS)}")


def _score_units(
    decoder: AnyDecoder, ids: Tensor, mask: Tensor | None, criterion: str, unit: str, options: dict[str, Any],
    choices: Sequence[tuple[Unit, ...]],
) -> list[float]:  # fmt: skip
    """The scores of single units by any criterion."""
    scores = score(decoder, ids, criterion, unit, mask, **options)
    values = dict(zip(scores.units, scores.values, strict=True))
    return [values[candidate] for (candidate,) in choices]


def _score_windows(
    decoder: AnyDecoder, ids: Tensor, mask: Tensor | None, criterion: str, unit: str, options: dict[str, Any],
    choices: Sequence[tuple[Unit, ...]],
) -> list[float]:  # fmt: skip
    """The distances over windows of blocks."""
    distances = window_distances(decoder, ids, len(choices[0]), mask, distance=criterion, **options)
    return [distances[first] for (_, first), *_ in choices]


_RANKERS = {"one-shot": _score_units, "window": _score_windows}
_Method = Callable[[Evaluator, Candidates, Ranker | None, Progress | None], tuple[float, list[Step]]]
_METHODS: dict[str, _Method] = {"one-shot": one_shot, "greedy": greedy, "window": window}
