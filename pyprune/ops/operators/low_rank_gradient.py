"""The gradient of a low-rank factor, under dropout: LoRA's A and B on the way back.

low [..., R], x [..., K] with as many rows -> low^T (m * x) [R, K] in float32 (float64 for float64), m the dropout's
mask of the rows of x (`pyprune.ops.dropout`), 0 where a value is dropped, else 1.
"""

from __future__ import annotations

from torch import Tensor

from pyprune.ops.dropout import kept_values
from pyprune.ops.formulas import wide
from pyprune.ops.low_rank import check_low
from pyprune.ops.specification import Operator

SCHEMA = "(Tensor low, Tensor x, int seed=0, float dropout=0.0) -> Tensor"


def reference(low: Tensor, x: Tensor, seed: int = 0, dropout: float = 0.0) -> Tensor:
    check_low(low, x)
    rows = kept_values(x.reshape(-1, x.shape[-1]), seed, dropout)
    return (low.reshape(-1, low.shape[-1]).to(x.dtype).T @ rows).to(wide(x.dtype))


def fake(low: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(low.shape[-1], x.shape[-1], dtype=wide(x.dtype))


OPERATOR = Operator(SCHEMA, fake, reference, kernels=("cpu",))
