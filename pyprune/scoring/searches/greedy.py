"""Greedy removal: the unit whose removal costs least goes, and the rest is scored again.

SLEB does so over blocks, BlockPruner over MHA and FFN sublayers together, each with one forward pass for every
candidate and round. Here a round continues from the states of earlier ones: what a candidate shares with one that was
scored before the last removal is not computed again.
"""

from __future__ import annotations

import math

from pyprune.progress import Progress
from pyprune.scoring.evaluator import Evaluator
from pyprune.scoring.progress import round_progress
from pyprune.scoring.removals import NO_REMOVAL, removal_of
from pyprune.scoring.searches.candidates import Candidates, Ranker, choice_order
from pyprune.scoring.searches.result import Choice, Step


def greedy(
    evaluator: Evaluator, candidates: Candidates, ranker: Ranker | None = None, progress: Progress | None = None
) -> tuple[float, list[Step]]:
    """The perplexity of the unpruned model, and the steps: one unit each. ranker: not asked, rounds go by
    perplexity."""
    decoder, remaining = candidates.decoder, dict(candidates.units)
    rounds, removed = candidates.max_steps(), NO_REMOVAL
    baseline = math.nan  # of the first round
    steps: list[Step] = []
    while (step_count := candidates.steps_needed([step.parameters for step in steps])) is None:
        units = list(remaining)
        removals = [removed | removal_of(decoder, [unit]) for unit in units]
        round_ = round_progress(progress, len(steps), rounds)
        if steps:
            values = evaluator.perplexities(removals, round_)
        else:
            baseline, *values = evaluator.perplexities([NO_REMOVAL, *removals], round_)
        choices = tuple(Choice((unit,), value) for unit, value in zip(units, values, strict=True))
        best = min(choices, key=choice_order)
        removed |= removal_of(decoder, best.units)
        evaluator.set_removed(removed)
        steps.append(Step(best.units, best.score, remaining.pop(best.units[0]), choices))
    return baseline, steps[:step_count]
