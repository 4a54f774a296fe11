"""What a criterion measured, before it is put into a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Unit = tuple[str, int]
"""A kind ("block", "mha", "ffn") and a block's place in the original model."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Measured:
    """One value a unit, the lowest for the most removable; `baseline`: the same measure of the whole model."""

    values: dict[Unit, float]
    baseline: float | None = None


class Steps:
    """Tells `progress` how many of `total` steps are done."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        if self._progress is not None:
            self._progress(self._done, self._total)
