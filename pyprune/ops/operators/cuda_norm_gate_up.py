"""`norm_gate_up` of one or two rows, by the CUDA library.

silu(h gate^T + gate_bias) * (h up^T + up_bias) with h = RMSNorm(x [..., H]); gate, up [F, H]. Gives [..., F], its rows
as `strides.empty_rows` lays them out.
"""

from __future__ import annotations

from torch import Tensor

from pyprune.ops.specification import Operator, Route
from pyprune.strides import empty_rows

SCHEMA = (
    "(Tensor x, Tensor norm, float eps, Tensor gate, Tensor up, Tensor? gate_bias, "
    "Tensor? up_bias, Tensor? skip=None, int sublayer=0) -> Tensor"
)


def fake(x: Tensor, gate: Tensor) -> Tensor:
    return empty_rows(*x.shape[:-1], gate.shape[0], dtype=x.dtype, device=x.device)


OPERATOR = Operator(SCHEMA, fake, routes={"norm_gate_up": Route()})
