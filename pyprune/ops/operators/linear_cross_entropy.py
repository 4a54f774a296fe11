"""The head and the loss in one.

-log softmax(h weight^T + bias)[target] for each row, h = x [..., H], RMS-normalised where norm is given. Targets [...]
int64 in [0, V) or ignore_index, whose loss is 0. Logits never exist as a whole. Gives float32 [...].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyprune.ops.checks import expect
from pyprune.ops.formulas import linear, rms_norm, wide
from pyprune.ops.specification import Operator

SCHEMA = (
    "(Tensor x, Tensor weight, Tensor targets, Tensor? norm=None, float eps=0.0, "
    "Tensor? bias=None, int ignore_index=-100) -> Tensor"
)


def reference(
    x: Tensor, weight: Tensor, targets: Tensor, norm: Tensor | None = None, eps: float = 0.0,
    bias: Tensor | None = None, ignore_index: int = -100,
) -> Tensor:  # fmt: skip
    h = x if norm is None else rms_norm(x, norm, eps)
    h, flat = h.reshape(-1, h.shape[-1]), targets.reshape(-1)
    vocab = weight.shape[0]
    bad = flat[(flat != ignore_index) & ((flat < 0) | (flat >= vocab))]
    expect(bad.numel() == 0, f"targets: {bad[:1].tolist()} is outside [0, {vocab})")
    dtype = wide(x.dtype)
    losses = [  # some rows at a time: even here the logits never exist as a whole
        F.cross_entropy(linear(part, weight, bias).to(dtype), target, reduction="none", ignore_index=ignore_index)
        for part, target in zip(h.split(256), flat.split(256), strict=True)
    ]
    return (torch.cat(losses) if losses else x.new_zeros(0, dtype=dtype)).view(targets.shape)


def fake(x: Tensor, targets: Tensor) -> Tensor:
    return x.new_empty(targets.shape, dtype=wide(x.dtype))


OPERATOR = Operator(SCHEMA, fake, reference, kernels=("cpu", "gpu"))
