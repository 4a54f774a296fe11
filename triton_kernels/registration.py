"""Registers the kernels with torch's dispatcher, for CUDA tensors. Whether that is done is decided by `pyprune.ops`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyprune.triton_kernels.attention import decode_attention
from pyprune.triton_kernels.cross_entropy import linear_cross_entropy
from pyprune.triton_kernels.projections import linear_residual, norm_gate_up, norm_head, padded_linear
from pyprune.triton_kernels.qkv_rope import norm_qkv_rope

OPERATORS = {
    "norm_qkv_rope": norm_qkv_rope,
    "decode_attention": decode_attention,
    "linear_residual": linear_residual,
    "norm_gate_up": norm_gate_up,
    "norm_head": norm_head,
    "linear_cross_entropy": linear_cross_entropy,
    "padded_linear": padded_linear,
}


def register(library: torch.library.Library, instead: Mapping[str, Callable[..., Tensor]] | None = None) -> None:
    """Make these, on CUDA, the operators that `library` defines (pyprune.ops.contracts.LIBRARY).

    `instead`: other functions for some of the names.
    """
    for name, function in {**OPERATORS, **(instead or {})}.items():
        library.impl(name, function, "CUDA")
