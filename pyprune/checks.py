"""Checks of numbers that callers and files hand in. A leaf of the package: it imports its errors and nothing heavy."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any, SupportsIndex, TypeGuard

from pyprune.errors import InputError


def is_int(value: object) -> TypeGuard[int]:
    """Whether `value` is an int of Python, as JSON has it; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_whole(value: Any) -> TypeGuard[SupportsIndex]:
    """Whether `value` is one whole number of Python, NumPy or torch; True and False are not."""
    if isinstance(value, bool) or getattr(value, "ndim", 0) != 0 or str(getattr(value, "dtype", "")).endswith("bool"):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a real number; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def require_whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value` as an int. InputError for anything but a whole number from `least` to `most`."""
    if not is_whole(value):
        raise InputError(f"{name}: {value!r} given; a whole number is accepted")
    whole = operator.index(value)
    if whole < least or (most is not None and whole > most):
        raise InputError(f"{name}: {whole} given; {least} {'or more' if most is None else f'to {most}'} is accepted")
    return whole
