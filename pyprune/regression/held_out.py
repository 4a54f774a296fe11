"""Which windows of a calibration set are not fitted, so that they can choose a ridge and say what a fit is worth."""

from __future__ import annotations

HELD_OUT_EVERY = 8
"""Of so many windows one is held out: for the ridge, the best method, and to say whether a repair harms."""


def is_held_out(sample: int) -> bool:
    """Whether a window of the calibration set is held out."""
    return sample % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def fitted_windows(samples: int) -> list[bool]:
    """Of each of at least two windows whether it is fitted: with fewer than HELD_OUT_EVERY the last one is held out."""
    fitted = [not is_held_out(sample) for sample in range(samples)]
    if all(fitted):
        fitted[-1] = False
    return fitted
