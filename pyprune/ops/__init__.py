"""The operators: `pyprune.ops.NAME` for each file of `operators/`, whatever runs it (`native` on CPUs, `gpu`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyprune.ops import gpu, native, reference, registration
from pyprune.ops.operators import OPERATORS
from pyprune.strides import pad_stride

native.load()
gpu.choose()

for _name in OPERATORS:
    globals()[_name] = getattr(torch.ops.pyprune, _name).default


def operator_for(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    """The operator of this name; for float64, in which no kernel computes, its reference implementation."""
    operator: Callable[..., Any] = getattr(reference if dtype == torch.float64 else torch.ops.pyprune, name)
    return operator


def __getattr__(name: str) -> torch._ops.OpOverload:  # for type checkers: the operators were set above
    raise AttributeError(f"pyprune.ops has no {name}; the operators are {', '.join(OPERATORS)}")


__all__ = ["gpu", "native", "operator_for", "pad_stride", "reference", "registration", *OPERATORS]
