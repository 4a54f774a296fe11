"""Around torch's GEMM: RMSNorm, SiLU product, residual. One pass over the rows each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyprune.strides import empty_rows, mark_zero_gap
from pyprune.triton_kernels.launch import cdiv, launch
from pyprune.triton_kernels.products import is_live

_FLAT = 1024  # elements a program of the elementwise kernels


@triton.jit
def rms_norm_kernel(x, x_stride, norm, out, out_stride, K, eps, BLOCK: tl.constexpr):
    """Writes zeros between the rows. Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros((BLOCK,), tl.float32)
    for k in range(0, K, BLOCK):
        ks = k + tl.arange(0, BLOCK)
        values = tl.load(x + row * x_stride + ks, mask=ks < K, other=0.0).to(tl.float32)
        squares += values * values
    inverse = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
    for k in range(0, out_stride, BLOCK):
        ks = k + tl.arange(0, BLOCK)
        values = tl.load(x + row * x_stride + ks, mask=ks < K, other=0.0).to(tl.float32)
        weight = tl.load(norm + ks, mask=ks < K, other=0.0).to(tl.float32)
        values = values * inverse * weight
        tl.store(out + row * out_stride + ks, values.to(out.dtype.element_ty), mask=ks < out_stride)


def padded_rows(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty [rows, width] whose rows each start on 16 bytes, as fast GEMM kernels require."""
    return empty_rows(rows, width, dtype=dtype, device=device)


def zero_padded(x: Tensor, stride: int) -> Tensor:
    """A copy of x [rows, K] whose rows lie `stride` values apart, with zeros between them."""
    store = x.new_empty(x.shape[0], stride)
    store[:, x.shape[1] :] = 0
    return mark_zero_gap(store[:, : x.shape[1]].copy_(x))


def rms_norm(x: Tensor, norm: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """norm * x / sqrt(mean(x^2) + eps) of x [rows, K] as `dtype`, computed in float32; rows start on 16 bytes, with
    zeros between them."""
    rows, inner = x.shape
    out = padded_rows(rows, inner, dtype, x.device)
    if rows and inner:
        launch(
            rms_norm_kernel, (rows,), x.device, 4, 1, x=x, x_stride=x.stride(0), norm=norm, out=out,
            out_stride=out.stride(0), K=inner, eps=eps, BLOCK=1024,
        )  # fmt: skip
    return mark_zero_gap(out) if out.stride(0) != inner else out


@triton.jit(do_not_specialize=["sublayer"])
def silu_product_kernel(gate, up, units, out, out_units, skip, sublayer, N, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    """Row strides are counted in UNIT elements. Behind a row of `out` zeros are written. Grid: (rows, blocks)."""
    live = is_live(skip, sublayer)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64)
    # Values between the rows of gate and up are read too, and discarded: a bound at an odd N would break up the loads.
    at = row * (units * UNIT) + n
    read = n < tl.where(live, units, 0) * UNIT
    g = tl.load(gate + at, mask=read, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=read, other=0.0).to(tl.float32)
    g, u = tl.where(n < N, g, 0.0), tl.where(n < N, u, 0.0)
    product = tl.where(live, g / (1.0 + tl.exp(-g)) * u, 0.0)
    at = row * (out_units * UNIT) + n
    tl.store(out + at, product.to(out.dtype.element_ty), mask=n < out_units * UNIT)


def silu_product(gate: Tensor, up: Tensor, out: Tensor, skip: Tensor | None, sublayer: int) -> Tensor:
    """out = silu(gate) * up, all [rows, N] of `padded_rows`, zeros between the rows of `out`; zeros where the skip flag
    is set."""
    rows, columns = gate.shape
    if rows and columns:
        size = min(16 // gate.element_size(), 16 // out.element_size())
        launch(
            silu_product_kernel, (rows, cdiv(out.stride(0), _FLAT)), out.device, 4, 1, gate=gate, up=up,
            units=gate.stride(0) // size, out=out, out_units=out.stride(0) // size, skip=skip, sublayer=sublayer,
            N=columns, UNIT=size, BLOCK=_FLAT,
        )  # fmt: skip
    return mark_zero_gap(out) if out.stride(0) != columns else out


@triton.jit(do_not_specialize=["sublayer"])
def add_residual_kernel(y, residual, out, skip, sublayer, size, BLOCK: tl.constexpr):
    """Grid: (blocks,)."""
    live = is_live(skip, sublayer)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    r = tl.load(residual + at, mask=at < size, other=0.0).to(tl.float32)
    r += tl.load(y + at, mask=at < tl.where(live, size, 0), other=0.0).to(tl.float32)
    tl.store(out + at, r.to(out.dtype.element_ty), mask=at < size)


def add_residual(y: Tensor, residual: Tensor, out: Tensor, skip: Tensor | None, sublayer: int) -> Tensor:
    """out = residual + y, all contiguous and of one size; the residual alone where the skip flag is set."""
    if out.numel():
        launch(
            add_residual_kernel, (cdiv(out.numel(), _FLAT),), out.device, 4, 1, y=y, residual=residual, out=out,
            skip=skip, sublayer=sublayer, size=out.numel(), BLOCK=_FLAT,
        )  # fmt: skip
    return out
