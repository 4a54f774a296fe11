"""The student's head, the next-token loss and the divergence from the teacher in one, without whole logits.

For M rows that predict a token, h `[M, H]` the student's last states, W `[V, H]` its head, y the targets,

    loss = mean over rows of (1 - w) (-log softmax(h W^T + b)_y) + w t^2 D(teacher, student),

D as in `retraining.divergence` at the temperature t; t^2 keeps its gradients' size whatever t is (Hinton et al. 2015).
The logits of both models exist for one tile of rows at a time (`retraining.head_loss`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyprune.ops.formulas import wide
from pyprune.retraining.divergence import divergence
from pyprune.retraining.head_loss import mean_head_loss

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

    def tile_loss(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        logits = logits.to(wide(logits.dtype))
        losses, slope = _tile(logits, teacher_logits(part).to(logits.dtype), targets[part], mixture)
        return losses.double().sum(), slope

    return mean_head_loss(hidden, weight, bias, tile_loss, tile_rows)


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
