"""torch's own GEMM (cuBLAS), on views whose rows each start on 16 bytes.

At an odd K that takes rows with zeros between them (`has_zero_gap`): the product over the wider views is the same. At
an odd N the result gets rows that lie further apart. **Unproven on hardware**: that cuBLAS is then as fast as at the
aligned neighbour, and faster than `wide_linear`. `PYPRUNE_GEMM=own` takes `wide_linear` at all odd sizes, `torch` this
GEMM at all, on the sizes as they are where nothing better is possible.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from pyprune.errors import InputError
from pyprune.strides import WIDE_LOAD, has_zero_gap, widened
from pyprune.triton_kernels.launch import stride_unit
from pyprune.triton_kernels.rows import padded_rows, zero_padded

VARIABLE = "PYPRUNE_GEMM"  # the GEMM of more than SKINNY_ROWS rows, on a CPU too


def takes(weight: Tensor, padded_result: bool = False) -> bool:
    """Whether this GEMM takes the product with a weight [out, in]; else `wide_linear` does.

    It does where both sizes are multiples of 16 bytes; at an odd `in` where the weight has a zero gap; at an odd `out`
    where the result may be one of `padded_rows`.
    """
    chosen = os.environ.get(VARIABLE) or "auto"
    if chosen not in ("auto", "own", "torch"):
        raise InputError(f"{VARIABLE}={chosen}: auto, own or torch is expected")
    columns, inner = (size * weight.element_size() % WIDE_LOAD for size in weight.shape)
    if not columns and not inner:
        return True
    if chosen != "auto":
        return chosen == "torch"
    return (not inner or has_aligned_gap(weight)) and (not columns or padded_result)


def has_aligned_gap(weight: Tensor) -> bool:
    """Whether there are zeros behind every row of the weight up to the next one, and rows start on 16 bytes."""
    return has_zero_gap(weight) and stride_unit(weight) > 1


def gemm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias in the weights' dtype, for x [rows, K]: contiguous or of `padded_rows`, with undefined values
    between the rows."""
    x, weight = aligned_views(x.to(weight.dtype), weight)
    bias = None if bias is None else bias.to(weight.dtype)
    out = padded_rows(x.shape[0], weight.shape[0], weight.dtype, x.device)
    if out.is_contiguous():
        return F.linear(x, weight, bias)
    return torch.mm(x, weight.T, out=out) if bias is None else torch.addmm(bias, x, weight.T, out=out)


def aligned_views(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """x [rows, K] and weight [O, K] as passed to the GEMM: the wider views where K is odd and the weight's gap is zero.
    x is copied where it is not aligned like the weight, or the values between its rows are unknown."""
    inner = x.shape[1]
    if inner * x.element_size() % WIDE_LOAD and has_aligned_gap(weight):
        width = weight.stride(0)
        if not (has_zero_gap(x) and x.stride(0) >= width and stride_unit(x) > 1):
            x = zero_padded(x, width)
        return widened(x, width), widened(weight, width)
    if inner and stride_unit(weight) > stride_unit(x):  # else the GEMM takes its slow kernels for odd strides
        x = padded_rows(*x.shape, x.dtype, x.device).copy_(x)
    return x, weight
