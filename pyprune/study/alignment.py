"""Which alignment of a width matters: the times of a sweep by the greatest power of two that divides the width."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

POWERS = (1, 2, 4, 8, 16, 32, 64, 128)
TOLERANCE = 0.03
LEAST_WIDTHS = 2
"""A class of fewer widths goes to the class below it: a single width says little."""

MOST_BYTES_ROWS = 16
"""Up to so many rows a linear is judged by the bytes that it reads, beyond by its arithmetic."""


@dataclass(frozen=True)
class Alignment:
    """What one side needs of a width, for one linear and number of rows.

    `cost`: power of two -> median time of the widths that it divides and no greater one does, over what bytes (or
    FLOPs) predict, the best such class being 1. `needed`: the least power from which on no class costs more than
    `TOLERANCE` above the best; 1 when no alignment matters.
    """

    role: str
    rows: int
    side: str
    cost: dict[int, float]
    needed: int

    @property
    def worst(self) -> float:
        """The cost of the worst class: 1.5 is half as long again as at the best widths."""
        return max(self.cost.values())


def power_of(width: int) -> int:
    """The greatest power of two, at most 128, that divides the width."""
    return min(width & -width, POWERS[-1])


def work(role: str, width: int, hidden: int, rows: int, itemsize: int) -> float:
    """What a product's time is measured by: its bytes for few rows, its FLOPs for many; without padding."""
    if rows <= MOST_BYTES_ROWS:
        return (width * hidden + rows * (width + hidden)) * itemsize
    return 2.0 * rows * width * hidden


def alignments(
    points: Sequence[dict[str, Any]], hidden: int, itemsize: int = 2, tolerance: float = TOLERANCE
) -> list[Alignment]:
    """One `Alignment` a role, number of rows and side. `points`: {"role", "width", "rows", "seconds": {side: [...]}}.

    Sides with fewer than two classes of widths are left out: nothing could be compared.
    """
    relative: dict[tuple[str, int, str], dict[int, list[float]]] = {}
    for point in points:
        for side, seconds in point["seconds"].items():
            if seconds:
                amount = work(point["role"], point["width"], hidden, point["rows"], itemsize)
                group = relative.setdefault((point["role"], point["rows"], side), {})
                group.setdefault(power_of(point["width"]), []).append(statistics.median(seconds) / amount)
    results = []
    for (role, rows, side), classes in relative.items():
        if len(_pooled(classes)) < 2:
            continue
        medians = {power: statistics.median(values) for power, values in sorted(_pooled(classes).items())}
        best = min(medians.values())
        cost = {power: value / best for power, value in medians.items()}
        results.append(Alignment(role, rows, side, cost, _needed(cost, tolerance)))
    return results


def _pooled(classes: dict[int, list[float]]) -> dict[int, list[float]]:
    pooled: dict[int, list[float]] = {}
    carried: list[float] = []
    powers = sorted(classes, reverse=True)
    for power in powers:
        values = carried + classes[power]
        if len(values) < LEAST_WIDTHS and power != powers[-1]:
            carried = values
        else:
            pooled[power], carried = values, []
    return pooled


def _needed(cost: dict[int, float], tolerance: float) -> int:
    """The least power in `cost` such that it and all greater ones are within the tolerance of the best."""
    powers = sorted(cost)
    slow = [power for power in powers if cost[power] > 1 + tolerance]
    if not slow:
        return 1
    above = [power for power in powers if power > max(slow)]
    # Where the greatest class itself is slow, something else than alignment is at work: then nothing suffices.
    return above[0] if above else 2 * powers[-1]
