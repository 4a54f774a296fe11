"""Random operands for the operators, never zeros."""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHTS = [torch.float32, torch.bfloat16, torch.float16]
ROWS = [1, 2, 3, 6, 7, 13, 64, 65, 130]
SIZES = [(1, 1), (37, 61), (5, 31), (66, 33), (171, 129), (130, 257)]  # (out, in): below, at and above vector widths


def random(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).to(dtype)


def weight(out: int, inner: int, dtype: torch.dtype) -> Tensor:
    return random(out, inner, dtype=dtype, scale=inner**-0.5)


def norm(size: int, dtype: torch.dtype) -> Tensor:
    return (torch.rand(size) + 0.5).to(dtype)


def double(*values: object) -> list:
    """The same arguments with every floating tensor in float64."""
    return [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]


def low(dtype: torch.dtype, *values: object) -> list:
    """The same arguments with every floating tensor in `dtype`: what plain PyTorch computes with in that dtype."""
    return [v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]


WRONG_RESIDUAL: list[tuple[dict, str]] = [
    (dict(x=random(4, 60)), "weight"),
    (dict(weight=weight(37, 61, torch.float32).double()), "weight"),
    (dict(weight=weight(61, 37, torch.float32).T), "weight"),
    (dict(bias=random(36)), "bias"),
    (dict(residual=random(3, 37)), "residual"),
    (dict(residual=random(4, 36)), "residual"),
    (dict(skip=torch.tensor([0, 1])), "skip"),
    (dict(skip=torch.tensor([True]), sublayer=1), "sublayer: 1"),
]
"""Arguments of `linear_residual` in place of x [4, 61], weight [37, 61], bias [37] and residual [4, 37], and what the
error says first."""
