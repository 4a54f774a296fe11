"""The final RMSNorm and the head.

RMSNorm(x [..., H]) weight^T [V, H] + bias [V]. Gives float32 logits [..., V].
"""

from __future__ import annotations

from torch import Tensor

from pyprune.ops.formulas import linear, rms_norm, wide
from pyprune.ops.specification import Operator

SCHEMA = "(Tensor x, Tensor norm, float eps, Tensor weight, Tensor? bias=None) -> Tensor"


def reference(x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return linear(rms_norm(x, norm, eps), weight, bias).to(wide(x.dtype))


def fake(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0], dtype=wide(x.dtype))


OPERATOR = Operator(SCHEMA, fake, reference, kernels=("cpu", "gpu"))
