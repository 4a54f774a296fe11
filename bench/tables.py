"""Plain text tables, and ratios with their intervals as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

FASTER = "pyprune is faster by (95 % interval)"


def aligned(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The header and the rows as lines, each column as wide as its widest cell."""
    columns = list(rows[0])
    cells = [columns, *([row[column] for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def interval_text(
    ratio: Mapping[str, Any], form: str = "{:.2f}", change: Callable[[float], float] = lambda value: value
) -> str:
    """The median of `pyprune.study.measure.speedup` with its 95 % interval, or with its quartiles where there are too
    few runs for one; each number after `change`, a monotonic function."""
    low, high, kind = ratio["low"], ratio["high"], ""
    if low is None:
        low, high, kind = ratio["q1"], ratio["q3"], "quartiles "
    ends = " to ".join(form.format(end) for end in sorted((change(low), change(high))))
    return f"{form.format(change(ratio['median']))} ({kind}{ends})"
