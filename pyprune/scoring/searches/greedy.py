"""Greedy removal: the unit whose removal costs least goes, and the rest is scored again.

SLEB does so over blocks, BlockPruner over attention and FFN halves together, each with one forward pass for every
candidate and round. Here a round continues from the states of earlier ones: all that a candidate shares with one that
was scored before the last removal is not computed again.
"""

from __future__ import annotations

from pyprune.scoring.evaluator import Evaluator, Progress, share
from pyprune.scoring.removals import NO_REMOVAL, removal_of
from pyprune.scoring.searches.candidates import Candidates, place_of
from pyprune.scoring.searches.result import Choice, Step


def greedy(
    evaluator: Evaluator, candidates: Candidates, ranker: None = None, progress: Progress | None = None
) -> tuple[float, list[Step]]:
    """The perplexity of the whole model, and the steps: one unit each. ranker: none, rounds go by perplexity."""
    decoder, left = candidates.decoder, dict(candidates.units)
    most, baseline, removed = candidates.most(), None, NO_REMOVAL
    steps: list[Step] = []
    while (enough := candidates.enough([step.parameters for step in steps])) is None:
        units = list(left)
        removals = [removed | removal_of(decoder, [unit]) for unit in units]
        first = [] if steps else [NO_REMOVAL]
        values = evaluator.perplexities([*first, *removals], share(progress, len(steps), most))
        if first:
            baseline = values.pop(0)
        choices = tuple(Choice((unit,), value) for unit, value in zip(units, values, strict=True))
        best = min(choices, key=place_of)
        removed |= removal_of(decoder, best.units)
        evaluator.settle(removed)
        steps.append(Step(best.units, best.score, left.pop(best.units[0]), choices))
    return baseline, steps[:enough]
