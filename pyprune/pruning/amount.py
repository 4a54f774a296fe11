"""How much to prune, as people write it: "20%", "0.2" or "6"."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from pyprune.checks import is_int, is_number
from pyprune.errors import InputError

_SHARE = "a share of the parameters above 0 and below 1 (20% or 0.2)"
_COUNT = "a number of units from 1 (6)"


class Amount(NamedTuple):
    """Either a ratio, the share of all parameters to remove, or a count of units; the other is None."""

    ratio: float | None = None
    count: int | None = None  # type: ignore[assignment]  # of units, and not the method of a tuple


def parse_amount(text: str) -> Amount:
    """Read "20%" or "0.2" as a ratio and "6" as a count.

    InputError for a ratio outside (0, 1), a count below 1, or anything else.
    """
    count = re.fullmatch(r"\s*([0-9]{1,18})\s*", str(text))
    if count is None:
        ratio = _ratio(text)
        if ratio is not None:
            return Amount(ratio=ratio)
    elif int(count[1]):
        return Amount(count=int(count[1]))
    raise InputError(f"amount {text!r}: {_SHARE} or {_COUNT} is expected")


def parse_ratio(text: str) -> float:
    """Read "20%" or "0.2" where only a share can be meant; InputError for anything else, a count among it."""
    ratio = _ratio(text)
    if ratio is None:
        raise InputError(f"ratio {text!r}: {_SHARE} is expected")
    return ratio


def _ratio(text: str) -> float | None:
    """The share that `text` writes, None when it writes none in (0, 1)."""
    written = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(%?)\s*", str(text), re.IGNORECASE)
    try:
        number = float(written[1]) if written else math.nan
    except ValueError:  # more than one point
        return None
    ratio = number / 100 if written and written[2] else number
    return ratio if 0 < ratio < 1 else None


def check_ratio(ratio: float) -> float:
    """`ratio` if it lies strictly between 0 and 1, else InputError."""
    if not is_number(ratio) or not math.isfinite(ratio) or not 0 < ratio < 1:
        raise InputError(f"ratio {ratio!r}: a number above 0 and below 1 is expected")
    return float(ratio)


def check_count(count: object) -> int:
    """`count` if it is a whole number from 1, else InputError."""
    if not is_int(count) or count < 1:
        raise InputError(f"count {count!r}: a whole number from 1 is expected")
    return count
