"""Which windows of a calibration set are not fitted, so that they can choose a ridge and say what a fit is worth."""

from __future__ import annotations

HELD_OUT_EVERY = 8
"""Of so many windows one is held out: for the ridge, the best method, and to say whether a repair harms."""


def is_held_out(sample: int) -> bool:
    """Whether a window of the calibration set is held out."""
    return sample % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


JUDGING_TOKENS, JUDGING_WINDOWS = 4096, 8
"""About so many held-out tokens say what a fit is worth, of at least so many windows where there are: they are the same
before and after, so that few tell."""


def judging(samples: int, seq_len: int) -> list[int]:
    """The held-out windows that say what a fit is worth: about JUDGING_TOKENS of them, from all over the text."""
    held_out = [sample for sample in range(samples) if is_held_out(sample)]
    wanted = min(len(held_out), max(JUDGING_WINDOWS, -(-JUDGING_TOKENS // seq_len)))
    return [held_out[place * len(held_out) // wanted] for place in range(wanted)]


def spread(samples: int, count: int) -> list[int]:
    """The numbers of `count` of so many windows, from all over them: drawn windows stand in the order of the text, so
    the first of them are of one kind. Whole groups, each with its held-out window; all where there are no more."""
    groups, wanted = samples // HELD_OUT_EVERY, -(-count // HELD_OUT_EVERY)
    if count >= samples or wanted >= groups:
        return list(range(samples))
    chosen = [place * groups // wanted for place in range(wanted)]
    return [group * HELD_OUT_EVERY + place for group in chosen for place in range(HELD_OUT_EVERY)]


def fitted_windows(samples: int) -> list[bool]:
    """Of each of at least two windows whether it is fitted: with fewer than HELD_OUT_EVERY the last one is held out."""
    fitted = [not is_held_out(sample) for sample in range(samples)]
    if all(fitted):
        fitted[-1] = False
    return fitted
