"""Operators: a schema (`schemas`), a reference implementation (`reference`) and kernels (`native`, `gpu`) each."""

from __future__ import annotations

import torch

from pyprune.ops import gpu, native, reference, registration
from pyprune.strides import pad_stride

native.load()
gpu.choose()

norm_qkv_rope = torch.ops.pyprune.norm_qkv_rope.default
decode_attention = torch.ops.pyprune.decode_attention.default
linear_residual = torch.ops.pyprune.linear_residual.default
norm_gate_up = torch.ops.pyprune.norm_gate_up.default
norm_head = torch.ops.pyprune.norm_head.default
linear_cross_entropy = torch.ops.pyprune.linear_cross_entropy.default
padded_linear = torch.ops.pyprune.padded_linear.default
compress_bfloat16 = torch.ops.pyprune.compress_bfloat16.default
decompress_bfloat16 = torch.ops.pyprune.decompress_bfloat16.default
dequantize_gguf = torch.ops.pyprune.dequantize_gguf.default
decode_step = torch.ops.pyprune.decode_step.default

__all__ = [
    "compress_bfloat16",
    "decode_attention",
    "decode_step",
    "decompress_bfloat16",
    "dequantize_gguf",
    "gpu",
    "linear_cross_entropy",
    "linear_residual",
    "native",
    "norm_gate_up",
    "norm_head",
    "norm_qkv_rope",
    "pad_stride",
    "padded_linear",
    "reference",
    "registration",
]
