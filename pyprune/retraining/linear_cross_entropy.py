"""Head and loss in one, differentiable, without whole logits.

For M rows that have a target, h `[M, H]` the last states, W `[V, H]` the head,

    loss = mean over rows of -log softmax(c)_target,   c = cap tanh(s z / cap),   z = h W^T + b

(c = s z without a cap).

Tiles of rows come one after the other: the logits of one tile exist at a time. The gradients are summed up in the
forward pass, where the logits are at hand, so that no product is computed twice:

    dL/dz = s (1 - (c / cap)^2) (softmax(c) - onehot(target)) / M,   dL/dh = dL/dz W,   dL/dW = dL/dz^T h

Where no gradient is asked for, the operator of the scorer takes over, whose tiles are of tokens and of vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyprune import ops
from pyprune.scoring.losses import IGNORED

TILE_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
"""Of float32 logits in memory at a time, by the kind of device."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, *, scale: float = 1.0,
    cap: float | None = None, tile_rows: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean loss over the rows that have a target, a scalar in float32 (float64 for float64 states); 0 without any.

    hidden `[..., H]`, weight `[V, H]`, bias `[V]`; targets `[...]` int64, each in [0, V) or IGNORED (-100): such rows
    do not meet the head. scale, cap: s and cap above. tile_rows: rows of a tile (default: what TILE_BYTES holds).
    Differentiable in hidden, weight and bias. Under autocast products are in its dtype, as a Linear's are.
    """
    rows, flat = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    predicted = flat != IGNORED
    if not bool(predicted.all()):
        rows, flat = rows[predicted], flat[predicted]
    if not len(flat):
        return rows.sum() * 0.0
    tile = tile_rows or max(1, TILE_BYTES[hidden.device.type] // (weight.shape[0] * 4))
    return _LinearCrossEntropy.apply(rows, weight, flat, bias, scale, cap, tile)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, scale: float, cap: float | None,
        tile: int,
    ) -> Tensor:  # fmt: skip
        product = product_dtype(hidden, weight)
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        wants = ctx.needs_input_grad[0], ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[3]
        with torch.autocast(hidden.device.type, enabled=False):
            head, head_bias = weight.to(product), None if bias is None else bias.to(product)
            if not any(wants) and scale == 1 and cap is None:
                losses = ops.linear_cross_entropy(hidden.to(product), head, targets, None, 0.0, head_bias)
                return losses.double().mean().to(wide)
            slopes = torch.empty_like(hidden) if wants[0] else None
            weight_slopes = torch.zeros_like(weight, dtype=wide) if wants[1] else None
            bias_slopes = torch.zeros_like(weight[:, 0], dtype=wide) if wants[2] else None
            total = hidden.new_zeros((), dtype=torch.float64)
            for start in range(0, len(hidden), tile):
                part = slice(start, start + tile)
                h, target = hidden[part].to(product), targets[part, None]
                c = F.linear(h, head, head_bias).to(wide)
                if scale != 1:
                    c.mul_(scale)
                if cap is not None:
                    c.div_(cap).tanh_().mul_(cap)
                log_p = c.log_softmax(-1)
                total -= log_p.gather(-1, target).double().sum()
                if not any(wants):
                    continue
                slope = log_p.exp_()
                slope.scatter_add_(-1, target, torch.full_like(target, -1, dtype=wide)).mul_(scale / len(hidden))
                if cap is not None:
                    slope.mul_(1 - (c / cap) ** 2)
                if bias_slopes is not None:
                    bias_slopes += slope.sum(0)
                slope = slope.to(product)
                if slopes is not None:
                    slopes[part] = slope @ head
                if weight_slopes is not None:
                    weight_slopes += slope.T @ h
        ctx.save_for_backward(slopes, weight_slopes, bias_slopes)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return (total / len(hidden)).to(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        slopes, weight_slopes, bias_slopes = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if slopes is None else slopes * gradient.to(slopes.dtype),
            None if weight_slopes is None else (weight_slopes * gradient).to(weight_dtype),
            None,
            None if bias_slopes is None else (bias_slopes * gradient).to(bias_dtype),
            None,
            None,
            None,
        )


def product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What a Linear would multiply in here."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return torch.promote_types(hidden.dtype, weight.dtype)
