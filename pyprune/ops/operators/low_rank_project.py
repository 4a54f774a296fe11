"""A product of low rank, under dropout: what LoRA's A does.

x [..., K], a [R, K] of any strides -> (m * x) a^T [..., R] in float32 (float64 for float64), m the dropout's mask of
the rows of x (`pyprune.ops.dropout`), 0 where a value is dropped, else 1.
"""

from __future__ import annotations

from torch import Tensor

from pyprune.ops.dropout import kept_values
from pyprune.ops.formulas import wide
from pyprune.ops.low_rank import check_factor
from pyprune.ops.specification import Operator

SCHEMA = "(Tensor x, Tensor a, int seed=0, float dropout=0.0) -> Tensor"


def reference(x: Tensor, a: Tensor, seed: int = 0, dropout: float = 0.0) -> Tensor:
    check_factor(a, x)
    rows = kept_values(x.reshape(-1, x.shape[-1]), seed, dropout)
    return (rows @ a.to(x.dtype).T).to(wide(x.dtype)).view(*x.shape[:-1], a.shape[0])


def fake(x: Tensor, a: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], a.shape[0], dtype=wide(x.dtype))


OPERATOR = Operator(SCHEMA, fake, reference, kernels=("cpu",))
