"""One-shot removal (Shortened LLaMA, section 3.2): rank all units once and remove from the front of the ranking.

A ranking does not tell what its first units cost together, so the perplexity after every step is taken too.
"""

from __future__ import annotations

from pyprune.scoring.evaluator import Evaluator, Progress, share
from pyprune.scoring.removals import NO_REMOVAL, removal_of
from pyprune.scoring.searches.candidates import Candidates, Ranker, place_of
from pyprune.scoring.searches.result import Choice, Step, Unit


def one_shot(
    evaluator: Evaluator, candidates: Candidates, ranker: Ranker | None, progress: Progress | None = None
) -> tuple[float, list[Step]]:
    """The perplexity of the whole model, and the steps: one unit each. ranker: perplexity when None."""
    decoder, units = candidates.decoder, [(unit,) for unit in candidates.units]
    known: list[float] = []
    if ranker is None:
        removals = [NO_REMOVAL, *(removal_of(decoder, unit) for unit in units)]
        baseline, *values = evaluator.perplexities(removals, share(progress, 0, 2))
        known = [baseline, min(values)]
    else:
        values = ranker(units)
    choices = tuple(Choice(unit, value) for unit, value in zip(units, values, strict=True))
    order = _first(candidates, [choice.units[0] for choice in sorted(choices, key=place_of)])
    removals = [removal_of(decoder, order[:length]) for length in range(len(known), len(order) + 1)]
    baseline, *scores = [*known, *evaluator.perplexities(removals, share(progress, 1, 2))]
    steps = [
        Step((unit,), score, candidates.units[unit], choices if place == 0 else ())
        for place, (unit, score) in enumerate(zip(order, scores, strict=True))
    ]
    return baseline, steps


def _first(candidates: Candidates, order: list[Unit]) -> list[Unit]:
    """As many of the units from the front as the amount asks for."""
    length, enough = 0, None
    while enough is None:
        length += 1
        enough = candidates.enough([candidates.units[unit] for unit in order[:length]])
    return order[:enough]
