"""What the figures of scores share: colours, the axes of values and blocks, and the order of kinds of units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pyprune.errors import InputError
from pyprune.scoring.scores import Scores
from pyprune.study.figure import plain_ticks

KEPT, DROPPED, PROTECTED, BASELINE, OTHER = "#7FA8C9", "#D55E00", "#C8C8C8", "#222222", "#0072B2"
"""Okabe and Ito's vermilion and blue mark what matters; they can be told apart by colour-blind readers."""
HATCHES = {"block": "", "mha": "", "ffn": "///"}
SPREAD = 20
"""Positive scores whose largest is so many times the smallest are drawn on a log scale."""
WIDEST = 17.0
"""Inches; figures of deep models grow narrower bars instead."""


def kinds_of(scores: Scores) -> list[str]:
    """The kinds of units scored, in the order of a block's sublayers."""
    if scores.candidates is not None:
        raise InputError("plot: scores of candidates; scores of blocks or sublayers are expected")
    return sorted({kind for kind, _ in scores.units}, key=tuple(HATCHES).index)


def value_axis(panel: Any, values: Sequence[float], baseline: float | None) -> tuple[float, float]:
    """Scale the axis for the values; its bottom and the height of an infinite bar."""
    finite = [value for value in (*values, *([] if baseline is None else [baseline])) if math.isfinite(value)] or [1.0]
    low, high = min(finite), max(finite)
    if low > 0 and high > SPREAD * low:
        panel.set_yscale("log")
        plain_ticks(panel.yaxis)
        bottom, top = low / (high / low) ** 0.06, high * (high / low) ** 0.06
    else:
        room = 0.08 * (max(high, 0.0) - min(low, 0.0) or 1.0)
        bottom, top = min(low - room, 0.0) if low < 0 else 0.0, max(high + room, 0.0)
    panel.set_ylim(bottom, top)
    return bottom, top


def block_axis(panel: Any, blocks: Sequence[int]) -> None:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if len(blocks) <= 40 * step or step == 100)
    ticks = [index for index in blocks if index % step == 0]
    panel.set_xticks(ticks, [str(index) for index in ticks], fontsize=8)
    panel.set_xlim(blocks[0] - 0.7, blocks[-1] + 0.7)
    panel.set_xlabel("Block")
