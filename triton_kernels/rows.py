"""Around torch's GEMMs, for many rows: RMSNorm, SiLU product, residual. One pass over the rows each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyprune.triton_kernels.launch import cdiv, launch
from pyprune.triton_kernels.products import is_live

_FLAT = 1024  # elements that a program of the elementwise kernels takes


@triton.jit
def rms_norm_kernel(x, x_stride, norm, out, out_stride, K, eps, BLOCK: tl.constexpr):
    """Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros((BLOCK,), tl.float32)
    for k in range(0, K, BLOCK):
        ks = k + tl.arange(0, BLOCK)
        values = tl.load(x + row * x_stride + ks, mask=ks < K, other=0.0).to(tl.float32)
        squares += values * values
    inverse = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
    for k in range(0, K, BLOCK):
        ks = k + tl.arange(0, BLOCK)
        values = tl.load(x + row * x_stride + ks, mask=ks < K, other=0.0).to(tl.float32)
        weight = tl.load(norm + ks, mask=ks < K, other=0.0).to(tl.float32)
        tl.store(out + row * out_stride + ks, (values * inverse * weight).to(out.dtype.element_ty), mask=ks < K)


def padded_rows(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty [rows, width] whose rows each start on 16 bytes, which is what fast GEMM kernels ask for."""
    size = 16 // dtype.itemsize
    return torch.empty(rows, cdiv(width, size) * size, dtype=dtype, device=device)[:, :width]


def rms_norm(x: Tensor, norm: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """norm * x / sqrt(mean(x^2) + eps) of x [rows, K] as `dtype`, computed in float32; rows start on 16 bytes."""
    rows, inner = x.shape
    out = padded_rows(rows, inner, dtype, x.device)
    if rows and inner:
        launch(
            rms_norm_kernel, (rows,), x.device, 4, 1, x=x, x_stride=x.stride(0), norm=norm, out=out,
            out_stride=out.stride(0), K=inner, eps=eps, BLOCK=1024,
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["unit"])
def silu_product_kernel(gate, up, out, skip, unit, size, BLOCK: tl.constexpr):
    """Grid: (blocks,)."""
    live = is_live(skip, unit)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    read = at < tl.where(live, size, 0)
    g = tl.load(gate + at, mask=read, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=read, other=0.0).to(tl.float32)
    product = tl.where(live, g / (1.0 + tl.exp(-g)) * u, 0.0)
    tl.store(out + at, product.to(out.dtype.element_ty), mask=at < size)


def silu_product(gate: Tensor, up: Tensor, out: Tensor, skip: Tensor | None, unit: int) -> Tensor:
    """out = silu(gate) * up, all contiguous and of one size; zeros where the skip flag is set."""
    if out.numel():
        launch(
            silu_product_kernel, (cdiv(out.numel(), _FLAT),), out.device, 4, 1, gate=gate, up=up, out=out, skip=skip,
            unit=unit, size=out.numel(), BLOCK=_FLAT,
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["unit"])
def add_residual_kernel(y, residual, out, skip, unit, size, BLOCK: tl.constexpr):
    """Grid: (blocks,)."""
    live = is_live(skip, unit)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    r = tl.load(residual + at, mask=at < size, other=0.0).to(tl.float32)
    r += tl.load(y + at, mask=at < tl.where(live, size, 0), other=0.0).to(tl.float32)
    tl.store(out + at, r.to(out.dtype.element_ty), mask=at < size)


def add_residual(y: Tensor, residual: Tensor, out: Tensor, skip: Tensor | None, unit: int) -> Tensor:
    """out = residual + y, all contiguous and of one size; the residual alone where the skip flag is set."""
    if out.numel():
        launch(
            add_residual_kernel, (cdiv(out.numel(), _FLAT),), out.device, 4, 1, y=y, residual=residual, out=out,
            skip=skip, unit=unit, size=out.numel(), BLOCK=_FLAT,
        )  # fmt: skip
    return out
