"""The kernels by the operator that they implement; whether they run on CUDA tensors is decided by `pyprune.ops.gpu`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pyprune.triton_kernels.attention import decode_attention
from pyprune.triton_kernels.cross_entropy import linear_cross_entropy
from pyprune.triton_kernels.projections import linear_residual, norm_gate_up, norm_head, padded_linear
from pyprune.triton_kernels.qkv_rope import norm_qkv_rope

OPERATORS: dict[str, Callable[..., Tensor]] = {
    "norm_qkv_rope": norm_qkv_rope,
    "decode_attention": decode_attention,
    "linear_residual": linear_residual,
    "norm_gate_up": norm_gate_up,
    "norm_head": norm_head,
    "linear_cross_entropy": linear_cross_entropy,
    "padded_linear": padded_linear,
}
