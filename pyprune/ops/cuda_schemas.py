"""The CUDA library's own operators (csrc/cuda/; schemas: `CUDA_SCHEMAS`): the linears of one or two rows, which are the
decode step's.

They compute what the operators of `schemas` of the same name compute, for 1 or 2 rows of activations in all (more is a
RuntimeError): they are steps of those operators' CUDA implementation, not a replacement for all rows. Activations,
norms, biases and the residual are float32 or of the weights' dtype. The skip flag is read on the device, nothing waits
for the host: they can be captured in a CUDA graph once they have run before.

`PYPRUNE_CUDA_OVERLAP=auto|0|1`: on sm_90 a kernel may ask for its first weights before the previous kernel has ended:
while the engine records a decode step (auto), never (0), always (1: right only where no kernel before it in the stream,
still running, writes a weight or a skip mask, for the flag is read then too).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyprune.strides import empty_rows


def _norm_gate_up(
    x: Tensor, norm: Tensor, eps: float, gate: Tensor, up: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None,
    skip: Tensor | None = None, unit: int = 0,
) -> Tensor:  # fmt: skip
    return empty_rows(*x.shape[:-1], gate.shape[0], dtype=x.dtype, device=x.device)


def _linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, skip: Tensor | None = None, unit: int = 0
) -> Tensor:
    return residual.new_empty(residual.shape)


def _linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, norm: Tensor | None = None, eps: float = 0.0,
    float_out: bool = False,
) -> Tensor:  # fmt: skip
    return x.new_empty(*x.shape[:-1], weight.shape[0], dtype=torch.float32 if float_out else x.dtype)


def _norm_qkv_rope(
    x: Tensor, norm: Tensor, eps: float, q_weight: Tensor, k_weight: Tensor, v_weight: Tensor, q_bias: Tensor | None,
    k_bias: Tensor | None, v_bias: Tensor | None, cos: Tensor, sin: Tensor, positions: Tensor, k_cache: Tensor,
    v_cache: Tensor, skip: Tensor | None = None, unit: int = 0, slots: Tensor | None = None,
) -> Tensor:  # fmt: skip
    head_dim = k_cache.shape[3]
    return x.new_empty(x.shape[0], x.shape[1], q_weight.shape[0] // head_dim, head_dim)


# What each operator gives, for tracing: shapes and dtypes without values.
FAKES: dict[str, Callable[..., Tensor]] = {
    "cuda_norm_gate_up": _norm_gate_up,
    "cuda_linear_residual": _linear_residual,
    "cuda_linear": _linear,
    "cuda_norm_qkv_rope": _norm_qkv_rope,
}
