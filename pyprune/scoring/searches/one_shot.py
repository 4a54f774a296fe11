"""One-shot removal (Shortened LLaMA, section 3.2): rank all units once and remove from the front of the ranking.

A ranking does not say what its first units cost together, so the perplexity after every step is computed too.
"""

from __future__ import annotations

from pyprune.progress import Progress
from pyprune.scoring.evaluator import Evaluator
from pyprune.scoring.progress import round_progress
from pyprune.scoring.removals import NO_REMOVAL, removal_of
from pyprune.scoring.searches.candidates import Candidates, Ranker, choice_order
from pyprune.scoring.searches.result import Choice, Step, Unit


def one_shot(
    evaluator: Evaluator, candidates: Candidates, ranker: Ranker | None, progress: Progress | None = None
) -> tuple[float, list[Step]]:
    """The perplexity of the unpruned model, and the steps: one unit each. ranker: perplexity when None."""
    decoder, units = candidates.decoder, [(unit,) for unit in candidates.units]
    known_scores: list[float] = []  # of the first prunings: the empty one, and that of the best unit
    if ranker is None:
        removals = [NO_REMOVAL, *(removal_of(decoder, unit) for unit in units)]
        baseline, *values = evaluator.perplexities(removals, round_progress(progress, 0, 2))
        known_scores = [baseline, min(values)]
    else:
        values = ranker(units)
    choices = tuple(Choice(unit, value) for unit, value in zip(units, values, strict=True))
    order = _front(candidates, [choice.units[0] for choice in sorted(choices, key=choice_order)])
    removals = [removal_of(decoder, order[:length]) for length in range(len(known_scores), len(order) + 1)]
    baseline, *scores = [*known_scores, *evaluator.perplexities(removals, round_progress(progress, 1, 2))]
    steps = [
        Step((unit,), score, candidates.units[unit], choices if number == 0 else ())
        for number, (unit, score) in enumerate(zip(order, scores, strict=True))
    ]
    return baseline, steps


def _front(candidates: Candidates, order: list[Unit]) -> list[Unit]:
    """As many of the units from the front as the amount asks for."""
    length, needed = 0, None
    while needed is None:
        length += 1
        needed = candidates.steps_needed([candidates.units[unit] for unit in order[:length]])
    return order[:needed]
