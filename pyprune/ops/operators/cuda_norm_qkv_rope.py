"""`norm_qkv_rope` of one or two rows, by the CUDA library.

norm_qkv_rope without q/k-norms, for weights whose rows start on 16 bytes and caches of their dtype.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyprune.ops.specification import Operator, Route

SCHEMA = (
    "(Tensor x, Tensor norm, float eps, Tensor q_weight, Tensor k_weight, Tensor v_weight, "
    "Tensor? q_bias, Tensor? k_bias, Tensor? v_bias, Tensor cos, Tensor sin, Tensor positions, Tensor(a!) k_cache, "
    "Tensor(b!) v_cache, Tensor? skip=None, int sublayer=0, Tensor? slots=None) -> Tensor"
)


def fake(x: Tensor, q_weight: Tensor, k_cache: Tensor) -> Tensor:
    head_dim = k_cache.shape[3]
    return x.new_empty(x.shape[0], x.shape[1], q_weight.shape[0] // head_dim, head_dim)


def _takes(arguments: dict[str, Any]) -> bool:
    """Whether there are no q/k-norms, caches of the weights' dtype and rows that start on 16 bytes."""
    weights = [arguments[name] for name in ("q_weight", "k_weight", "v_weight")]
    plain = arguments["q_norm"] is None and arguments["k_norm"] is None
    return plain and arguments["k_cache"].dtype == weights[0].dtype and all(map(_rows_are_aligned, weights))


def _rows_are_aligned(weight: Tensor) -> bool:
    return weight.data_ptr() % 16 == 0 and weight.stride(0) * weight.element_size() % 16 == 0


OPERATOR = Operator(SCHEMA, fake, routes={"norm_qkv_rope": Route(takes=_takes)})
