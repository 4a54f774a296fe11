"""The reference implementations by the name of their operator, as functions and in a table.

They stand in `operators/`, the formulas that they share in `formulas`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyprune.ops.formulas import rms_norm, rotate
from pyprune.ops.operators import OPERATORS

REFERENCE: dict[str, Callable[..., Any]] = {
    name: operator.reference for name, operator in OPERATORS.items() if operator.reference is not None
}


def __getattr__(name: str) -> Callable[..., Any]:
    try:
        return REFERENCE[name]
    except KeyError:
        raise AttributeError(f"pyprune.ops.reference has no operator {name}") from None


__all__ = ["REFERENCE", "rms_norm", "rotate"]
