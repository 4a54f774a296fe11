"""The student's head, the next-token loss and the divergence from the teacher in one, without whole logits.

For M rows that predict a token, h `[M, H]` the student's last states, W `[V, H]` its head, y the targets,

    loss = mean over rows of (1 - w) (-log softmax(h W^T + b)_y) + w t^2 D(teacher, student),

D as in `retraining.divergence` at the temperature t; t^2 keeps its gradients' size whatever t is (Hinton et al. 2015).
Tiles of rows come one after the other: the logits of both models exist for one tile at a time. The gradients are
summed up in the forward pass, where the logits are at hand, so nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyprune.retraining.divergence import divergence
from pyprune.retraining.linear_cross_entropy import TILE_BYTES, product_dtype

TeacherLogits = Callable[[slice], Tensor]
"""The teacher's logits `[R, V]` of a range of the rows, with no gradient."""


@dataclass(frozen=True)
class Mixture:
    """kind: "forward-kl" or "reverse-kl". top_k: outcomes besides the rest; None: the whole vocabulary. temperature: of
    both distributions in the divergence. weight: of the divergence; the next-token loss has the rest to 1."""

    kind: str = "forward-kl"
    top_k: int | None = None
    temperature: float = 1.0
    weight: float = 0.5


def linear_distillation(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, teacher_logits: TeacherLogits,
    mixture: Mixture, tile_rows: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean loss, a scalar in float32 (float64 for float64 states), differentiable in `hidden [M, H]`, and in
    `weight [V, H]` and `bias [V]` where they require a gradient.

    targets: int64 `[M]`, each in [0, V); the loss is 0 without any. tile_rows: rows of a tile (default: as many as
    TILE_BYTES holds). Under autocast products are in its dtype, as a Linear's are; sums over logits are not.
    """
    if not len(hidden):
        return hidden.sum() * 0.0
    rows = tile_rows or max(1, TILE_BYTES[hidden.device.type] // (weight.shape[0] * 4))
    return _LinearDistillation.apply(hidden, weight, bias, targets, teacher_logits, mixture, rows)


class _LinearDistillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, teacher_logits: TeacherLogits,
        mixture: Mixture, rows: int,
    ) -> Tensor:  # fmt: skip
        product = product_dtype(hidden, weight)
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        head, head_bias = weight.to(product), None if bias is None else bias.to(product)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        slopes = torch.zeros_like(hidden) if wants_hidden else None
        weight_slopes = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        bias_slopes = torch.zeros_like(bias, dtype=wide) if wants_bias and bias is not None else None
        total = hidden.new_zeros((), dtype=torch.float64)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), rows):
                part = slice(start, min(start + rows, len(hidden)))
                h = hidden[part].to(product)
                logits = F.linear(h, head, head_bias).to(wide)
                losses, slope = _tile(logits, teacher_logits(part).to(wide), targets[part], mixture)
                total += losses.double().sum()
                slope /= len(hidden)
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
            None if bias_slopes is None else (bias_slopes * gradient).to(bias_dtype),
            None, None, None, None,
        )  # fmt: skip


def _tile(logits: Tensor, teacher: Tensor, targets: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
    """The loss of each row `[R]` and its gradient in the logits `[R, V]`; both logits are used up."""
    share = mixture.weight * mixture.temperature**2
    losses, slope = divergence(logits, teacher, mixture.kind, mixture.temperature, mixture.top_k)
    losses, slope = losses * share, slope.mul_(share)
    if mixture.weight < 1:
        rest, target = 1 - mixture.weight, targets[:, None]
        log_p = logits.log_softmax(-1)
        losses = losses - rest * log_p.gather(-1, target)[:, 0]
        slope.add_(log_p.exp_(), alpha=rest)
        slope.scatter_add_(-1, target, torch.full_like(target, -rest, dtype=slope.dtype))
    return losses, slope
