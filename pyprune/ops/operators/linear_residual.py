"""Projection, bias and residual.

residual [..., O] + x [..., K] weight^T [O, K] + bias [O]. Gives [..., O] in the residual's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.ops.checks import expect, skipped
from pyprune.ops.formulas import linear
from pyprune.ops.specification import Operator

SCHEMA = "(Tensor x, Tensor weight, Tensor? bias, Tensor residual, Tensor? skip=None, int sublayer=0) -> Tensor"


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, skip: Tensor | None = None, sublayer: int = 0
) -> Tensor:
    expect(
        residual.shape == (*x.shape[:-1], weight.shape[0]),
        "residual: the rows of x and one column for each row of weight are expected",
    )
    if skipped(skip, sublayer):
        return residual.clone(memory_format=torch.contiguous_format)
    return residual.contiguous() + linear(x, weight, bias).to(residual.dtype)


def fake(residual: Tensor) -> Tensor:
    return residual.new_empty(residual.shape)


OPERATOR = Operator(SCHEMA, fake, reference, kernels=("cpu", "gpu"))
