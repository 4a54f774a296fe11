"""Head and loss in one, differentiable, without whole logits.

For M rows that have a target, h `[M, H]` the last states, W `[V, H]` the head,

    loss = mean over rows of -log softmax(c)_target,   c = cap tanh(s z / cap),   z = h W^T + b

(c = s z without a cap), by tiles of rows (`retraining.head_loss`), with

    dl/dz = s (1 - (c / cap)^2) (softmax(c) - onehot(target))

Where no gradient is asked for, the operator of the scorer takes over, whose tiles are of tokens and of vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import ops
from pyprune.ops.formulas import wide
from pyprune.retraining.head_loss import mean_head_loss, product_dtype
from pyprune.scoring.losses import IGNORED

IN_PLACE_BYTES = 32 << 20
"""Of logits in memory at a time where a kernel turns them into their gradient: the head's GEMM took a quarter less time
a row at 256 rows than at 85 (SmolLM2, bf16, 2 cores of a Zen 4)."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, *, scale: float = 1.0,
    cap: float | None = None, tile_rows: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean loss over the rows that have a target, a scalar in float32 (float64 for float64 states); 0 without any.

    hidden `[..., H]`, weight `[V, H]`, bias `[V]`; targets `[...]` int64, each in [0, V) or IGNORED (-100): such rows
    do not meet the head. scale, cap: s and cap above. tile_rows: rows of a tile (default: what
    IN_PLACE_BYTES holds, or TILE_BYTES).
    Differentiable in hidden, weight and bias. Under autocast products are in its dtype, as a Linear's are.
    """
    rows, flat = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    predicted = flat != IGNORED
    if not bool(predicted.all()):
        rows, flat = rows[predicted], flat[predicted]
    if not len(flat):
        return rows.sum() * 0.0
    tensors = (rows, weight) if bias is None else (rows, weight, bias)
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if not differentiable and scale == 1 and cap is None:
        return _by_operator(rows, weight, flat, bias)

    def tile_loss(z: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        if cap is None:
            return ops.operator_for("cross_entropy_gradient", z.dtype)(z, flat[part], scale).double().sum(), z
        target, c = flat[part, None], (z.to(wide(z.dtype)) * (scale / cap)).tanh_()
        log_p = (c * cap).log_softmax(-1)
        loss = -log_p.gather(-1, target).double().sum()
        slope = log_p.exp_().scatter_add_(-1, target, torch.full_like(target, -1, dtype=c.dtype))
        return loss, slope.mul_(c.square_().neg_().add_(1).mul_(scale))

    if tile_rows is None and cap is None and rows.device.type == "cpu":
        tile_rows = max(1, IN_PLACE_BYTES // (weight.shape[0] * product_dtype(rows, weight).itemsize))
    return mean_head_loss(rows, weight, bias, tile_loss, tile_rows)


def _by_operator(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
    product = product_dtype(hidden, weight)
    head_bias = None if bias is None else bias.to(product)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        losses = ops.linear_cross_entropy(hidden.to(product), weight.to(product), targets, None, 0.0, head_bias)
    return losses.double().mean().to(torch.promote_types(hidden.dtype, torch.float32))
