"""Head and loss in one, differentiable: some rows' logits at a time, computed again on the way back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyprune.scoring.losses import IGNORED

ROWS = 256


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, *, scale: float = 1.0,
    cap: float | None = None,
) -> Tensor:  # fmt: skip
    """Mean of -log softmax(logits)[target] over the rows that have a target: a scalar, float32 (float64 for float64).

    logits = cap * tanh(scale * z / cap), or scale * z without a cap, of z = hidden weight^T + bias; hidden `[..., H]`,
    weight `[V, H]`, targets `[...]` int64, IGNORED (-100) where nothing is predicted: such rows do not meet the head.
    Differentiable in hidden, weight and bias.
    """
    rows, flat = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    predicted = (flat != IGNORED).nonzero().flatten()
    rows, flat = rows[predicted], flat[predicted]

    def loss(part: Tensor, target: Tensor) -> Tensor:
        z = F.linear(part, weight, bias)
        z = z.float() if z.dtype in (torch.bfloat16, torch.float16) else z
        z = z if scale == 1 else z * scale
        z = z if cap is None else torch.tanh(z / cap) * cap
        return F.cross_entropy(z, target, reduction="sum")

    total = hidden.new_zeros((), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
    for part, target in zip(rows.split(ROWS), flat.split(ROWS), strict=True):
        total = total + checkpoint(loss, part, target, use_reentrant=False)
    return total / len(flat)
