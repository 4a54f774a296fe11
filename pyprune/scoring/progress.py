"""How long work reports how far it is."""

from __future__ import annotations

from pyprune.progress import Progress

THOUSANDTHS = 1000
"""Steps in all where work is counted in predicted multiplications."""


class StepProgress:
    """Reports each of `total` steps."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def advance(self) -> None:
        """One more step is done."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


class WorkProgress:
    """Reports each thousandth of `total` work once; `done` of it is done already."""

    def __init__(self, progress: Progress | None, done: float, total: float) -> None:
        self._progress, self._done, self._total, self._reported = progress, done, total, 0
        self.advance(0.0)

    def advance(self, work: float) -> None:
        """So much more is done."""
        self._done += work
        self._report(min(THOUSANDTHS - 1, int(THOUSANDTHS * self._done / self._total)) if self._total else 0)

    def finish(self) -> None:
        """All is done, whatever had been predicted."""
        self._report(THOUSANDTHS)

    def _report(self, step: int) -> None:
        if step > self._reported and self._progress is not None:
            self._progress(step, THOUSANDTHS)
        self._reported = max(step, self._reported)


def round_progress(progress: Progress | None, index: int, rounds: int) -> Progress | None:
    """The progress of round `index`, from 0, of about `rounds` equal ones, each counted in thousandths."""
    if progress is None:
        return None
    return lambda done, total: progress(index * THOUSANDTHS + done, max(rounds, index + 1) * THOUSANDTHS)
