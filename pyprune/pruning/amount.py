"""How much to prune, as people write it: "20%", "0.2" or "6"."""

from __future__ import annotations

import math
from typing import NamedTuple

from pyprune.errors import InputError

_ACCEPTED = "a share between 0 and 1 (20% or 0.2) or a number of units (6) is expected"


class Amount(NamedTuple):
    """Either a ratio, the share of all parameters to remove, or a count of units; the other is None."""

    ratio: float | None = None
    count: int | None = None


def parse_amount(text: str) -> Amount:
    """Read "20%" or "0.2" as a ratio and "6" as a count.

    InputError for a ratio outside (0, 1), a count below 1, or anything else.
    """
    written = str(text).strip()
    if written.isascii() and written.isdigit():
        return Amount(count=check_count(int(written)))
    percent = written.endswith("%")
    try:
        number = float(written.removesuffix("%"))
    except ValueError:
        raise InputError(f"amount {text!r}: {_ACCEPTED}") from None
    ratio = number / 100 if percent else number
    if not 0 < ratio < 1:
        raise InputError(f"amount {text!r}: {_ACCEPTED}")
    return Amount(ratio=ratio)


def check_ratio(ratio: float) -> float:
    """`ratio` if it lies strictly between 0 and 1, else InputError."""
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not math.isfinite(ratio) or not 0 < ratio < 1:
        raise InputError(f"ratio {ratio!r}: a number above 0 and below 1 is expected")
    return float(ratio)


def check_count(count: int) -> int:
    """`count` if it is a whole number from 1, else InputError."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"count {count!r}: a whole number from 1 is expected")
    return count
