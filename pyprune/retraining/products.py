"""Products by weights `[out, in]` within functions that have gradients of their own, by the GEMM that is fast here.

torch multiplies bfloat16 well where the processor has instructions for it. On a CPU without them its bfloat16 GEMM is a
fraction as fast as its float32 GEMM, so weights are widened for that, a slice at a time, and results stay float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyprune import ops
from pyprune.ops import native


def times_transposed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x `[M, in]` W^T + b in the weight's dtype, or in float32 where it was widened."""
    if not _widened(weight):
        return F.linear(x.to(weight.dtype), weight, bias)
    return ops.padded_linear(x.float(), weight, bias)


def times(x: Tensor, weight: Tensor) -> Tensor:
    """x `[M, out]` W, in the weight's dtype or in float32 likewise."""
    if not _widened(weight):
        return x.to(weight.dtype) @ weight
    out, width = weight.shape
    rows = max(native.constant("SLICE_ROWS"), native.constant("SLICE_ELEMENTS") // max(1, width))
    result = x.new_zeros(len(x), width, dtype=torch.float32)
    for begin in range(0, out, rows):
        part = slice(begin, begin + rows)
        result.addmm_(x[:, part].float(), weight[part].float())
    return result


def _widened(weight: Tensor) -> bool:
    """Whether float32 GEMMs are the fast ones for this weight."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in native.HALF_PRECISION
        and native.selected_isa() is not None
        and not (weight.dtype == torch.bfloat16 and native.multiplies_bfloat16())
    )
