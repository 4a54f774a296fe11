"""A product of low rank added to what is there, under dropout: what LoRA's B does, and its A on the way back.

y [..., K] with contiguous rows, low [..., R], a [R, K] of any strides: y += m * (low a), added in float32 and rounded
once, m the dropout's mask of the rows of y (`pyprune.ops.dropout`), 0 where a value is dropped, else 1.
"""

from __future__ import annotations

from torch import Tensor

from pyprune.ops.dropout import kept_values
from pyprune.ops.low_rank import check_factor, check_low
from pyprune.ops.specification import Operator

SCHEMA = "(Tensor(a!) y, Tensor low, Tensor a, int seed=0, float dropout=0.0) -> ()"


def reference(y: Tensor, low: Tensor, a: Tensor, seed: int = 0, dropout: float = 0.0) -> None:
    check_factor(a, y)
    check_low(low, y, a.shape[0])
    added = low.reshape(-1, low.shape[-1]).to(y.dtype) @ a.to(y.dtype)
    y.add_(kept_values(added, seed, dropout).view(y.shape))


def fake() -> None:
    return None


OPERATOR = Operator(SCHEMA, fake, reference, kernels=("cpu",))
