"""A mean loss over the logits of a head, differentiable, without whole logits.

For M rows, h `[M, H]` the last states, W `[V, H]` the head, and a loss l of a row's logits z,

    loss = 1 / M sum_m l(z_m),   z = h W^T + b,   dL/dh = dL/dz W,   dL/dW = dL/dz^T h,   dL/db = sum_m dL/dz_m

Tiles of rows come one after the other: the logits of one tile exist at a time. The gradients are summed up in the
forward pass, where the logits are at hand, so that no product is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyprune.retraining.products import times, times_transposed

TILE_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
"""Of float32 logits in memory at a time, by the kind of device."""

TileLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""The logits `[R, V]` of a range of the rows, which it may use up, in the product's dtype or wider -> the sum of their
losses, a scalar in float64, and its gradient in the logits."""


def mean_head_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tile_loss: TileLoss, tile_rows: int | None = None
) -> Tensor:
    """The mean loss over the rows, a scalar in float32 (float64 for float64 states).

    hidden `[M, H]`, M at least 1; weight `[V, H]`; bias `[V]`. Differentiable in these three. tile_rows: rows of a tile
    (default: what TILE_BYTES holds). Under autocast products are in its dtype, as a Linear's are; losses are not.
    """
    rows = tile_rows or max(1, TILE_BYTES[hidden.device.type] // (weight.shape[0] * 4))
    return _HeadLoss.apply(hidden, weight, bias, tile_loss, rows)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tile_loss: TileLoss, tile_rows: int
    ) -> Tensor:
        product = product_dtype(hidden, weight)
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        slopes = torch.empty_like(hidden) if wants_hidden else None
        weight_slopes = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        bias_slopes = torch.zeros_like(bias, dtype=wide) if wants_bias and bias is not None else None
        total = hidden.new_zeros((), dtype=torch.float64)
        with torch.autocast(hidden.device.type, enabled=False):
            head, head_bias = weight.to(product), None if bias is None else bias.to(product)
            for start in range(0, len(hidden), tile_rows):
                part = slice(start, min(start + tile_rows, len(hidden)))
                h = hidden[part].to(product)
                loss, slope = tile_loss(times_transposed(h, head, head_bias), part)
                total += loss
                if bias_slopes is not None:
                    bias_slopes += slope.sum(0, dtype=wide)
                slope = slope.to(product)
                if slopes is not None:
                    slopes[part] = times(slope, head)
                if weight_slopes is not None:
                    weight_slopes += slope.T @ h
        ctx.save_for_backward(slopes, weight_slopes, bias_slopes)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        ctx.rows = len(hidden)
        return (total / len(hidden)).to(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        slopes, weight_slopes, bias_slopes = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        share = gradient / ctx.rows
        return (
            None if slopes is None else (slopes * share).to(slopes.dtype),
            None if weight_slopes is None else (weight_slopes * share).to(weight_dtype),
            None if bias_slopes is None else (bias_slopes * share).to(bias_dtype),
            None,
            None,
        )


def product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What a Linear would multiply in here."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return torch.promote_types(hidden.dtype, weight.dtype)
