"""Random operands for the operators, never zeros, and the yardstick for their error."""

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


def assert_as_exact_as_pytorch(
    result: Tensor, plain: Tensor, exact: Tensor, tiny: float = 1e-6, dtype: torch.dtype = torch.float32
) -> None:
    """The largest error is at most twice that of plain PyTorch in the same dtype, plus `tiny` of the largest value.

    Plain PyTorch is not credited with less than half a unit in the last place of `dtype`, in which it computes: of one
    or two values its rounding may happen to be nothing.
    """
    assert result.shape == exact.shape
    scale = exact.abs().max().clamp(min=1e-30)
    error = (result.double() - exact).abs().max()
    theirs = (plain.double() - exact).abs().max().clamp(min=torch.finfo(dtype).eps / 2 * scale)
    allowed = 2 * theirs + tiny * scale
    assert torch.isfinite(result).all()
    assert error <= allowed, f"error {error:.3e}, allowed {allowed:.3e}"
