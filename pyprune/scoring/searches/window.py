"""Contiguous windows (Gromov et al., The Unreasonable Ineffectiveness of the Deeper Layers): n blocks in a row go.

Here every window is scored by the perplexity without it, exactly and all of them in one pass, or by another criterion.
"""

from __future__ import annotations

from pyprune.errors import InputError
from pyprune.progress import Progress
from pyprune.scoring.evaluator import Evaluator
from pyprune.scoring.removals import NO_REMOVAL, removal_of
from pyprune.scoring.searches.candidates import Candidates, Ranker, choice_order
from pyprune.scoring.searches.result import Choice, Step, Unit


def window(
    evaluator: Evaluator, candidates: Candidates, ranker: Ranker | None, progress: Progress | None = None
) -> tuple[float, list[Step]]:
    """The perplexity of the unpruned model, and one step: the window whose removal costs least. ranker: perplexity when
    None."""
    decoder, windows = candidates.decoder, windows_of(candidates)
    if ranker is None:
        removals = [NO_REMOVAL, *(removal_of(decoder, blocks) for blocks in windows)]
        baseline, *values = evaluator.perplexities(removals, progress)
    else:
        values = ranker(windows)
    choices = tuple(Choice(units, value) for units, value in zip(windows, values, strict=True))
    best = min(choices, key=choice_order)
    score = best.score
    if ranker is not None:
        baseline, score = evaluator.perplexities([NO_REMOVAL, removal_of(decoder, best.units)], progress)
    return baseline, [Step(best.units, score, sum(candidates.units[unit] for unit in best.units), choices)]


def windows_of(candidates: Candidates) -> list[tuple[Unit, ...]]:
    """All windows of the amount of blocks, neighbours in the decoder, that are candidates throughout.

    InputError where the protected blocks leave none.
    """
    count = candidates.count_of(list(candidates.units.values()))
    blocks = [("block", block.index) for block in candidates.decoder.sizes().blocks]
    windows = [tuple(blocks[start : start + count]) for start in range(len(blocks) - count + 1)]
    removable = [window for window in windows if all(block in candidates.units for block in window)]
    if not removable:
        raise InputError(f"search: no {count} blocks in a row can be removed; fewer, or less protected, is expected")
    return removable
