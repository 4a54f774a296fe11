"""The cross-entropy of logits, whose gradient takes their place.

logits z [M, V] with contiguous rows, targets [M] int64 in [0, V) -> l [M] in float32 (float64 for float64), and z
becomes dl/dz, with c = scale z:

    l = -log softmax(c)[target],   dl/dz = scale (softmax(c) - onehot(target))

computed in float32 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.ops.checks import check_places, expect
from pyprune.ops.formulas import wide
from pyprune.ops.specification import Operator

SCHEMA = "(Tensor(a!) logits, Tensor targets, float scale=1.0) -> Tensor"


def reference(logits: Tensor, targets: Tensor, scale: float = 1.0) -> Tensor:
    expect(logits.dim() == 2, "logits: a matrix [rows, vocabulary] is expected")
    check_places("targets", targets, (logits.shape[0],), logits.shape[1])
    target = targets[:, None]
    log_p = (logits.to(wide(logits.dtype)) * scale).log_softmax(-1)
    losses = -log_p.gather(-1, target)[:, 0]
    slope = log_p.exp_().scatter_add_(-1, target, torch.full_like(target, -1, dtype=log_p.dtype))
    logits.copy_(slope.mul_(scale))
    return losses


def fake(logits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=wide(logits.dtype))


OPERATOR = Operator(SCHEMA, fake, reference, kernels=("cpu",))
