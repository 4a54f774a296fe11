"""`linear_residual` of one or two rows, by the CUDA library.

residual [..., O] + x [..., K] weight^T [O, K] + bias [O]. Gives [..., O] in the residual's dtype.
"""

from __future__ import annotations

from torch import Tensor

from pyprune.ops.specification import Operator, Route

SCHEMA = "(Tensor x, Tensor weight, Tensor? bias, Tensor residual, Tensor? skip=None, int sublayer=0) -> Tensor"


def fake(residual: Tensor) -> Tensor:
    return residual.new_empty(residual.shape)


OPERATOR = Operator(SCHEMA, fake, routes={"linear_residual": Route()})
