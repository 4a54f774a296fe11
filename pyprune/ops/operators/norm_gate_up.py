"""RMSNorm, gate and up projections and the SiLU product: the FFN up to its down projection.

silu(h gate^T + gate_bias) * (h up^T + up_bias) with h = RMSNorm(x [..., H]); gate, up [F, H]. Gives [..., F].
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pyprune.ops.checks import skipped
from pyprune.ops.formulas import linear, rms_norm
from pyprune.ops.results import rows_to_project
from pyprune.ops.specification import Operator

SCHEMA = (
    "(Tensor x, Tensor norm, float eps, Tensor gate, Tensor up, Tensor? gate_bias, Tensor? up_bias, "
    "Tensor? skip=None, int sublayer=0) -> Tensor"
)


def reference(
    x: Tensor, norm: Tensor, eps: float, gate: Tensor, up: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None,
    skip: Tensor | None = None, sublayer: int = 0,
) -> Tensor:  # fmt: skip
    if skipped(skip, sublayer):
        return x.new_zeros(*x.shape[:-1], gate.shape[0])
    h = rms_norm(x, norm, eps)
    return (F.silu(linear(h, gate, gate_bias)) * linear(h, up, up_bias)).to(x.dtype)


def fake(x: Tensor, gate: Tensor) -> Tensor:
    return rows_to_project(x, *x.shape[:-1], gate.shape[0])


OPERATOR = Operator(SCHEMA, fake, reference, kernels=("cpu", "gpu"))
