"""The formulas that reference implementations share.

float64 inputs are computed in float64 throughout; any other dtype as Hugging Face's Llama computes it: norms and
rotations in float32, products in the weights' dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyprune.ops.checks import expect
from pyprune.ops.weight_formats import plain


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of norms, logits and losses: float32, and float64 for values in it."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rms_norm(x: Tensor, norm: Tensor, eps: float) -> Tensor:
    """norm * x / sqrt(mean(x^2) + eps) over the last dimension, in the dtype of `norm`."""
    values = x.to(wide(norm.dtype))
    return norm * (values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + eps)).to(norm.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on the last dimension of x [..., D]: pairs (i, i + D/2) are turned; cos and sin are [..., D/2]."""
    a, b = x.to(wide(x.dtype)).chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., K] weight^T + bias in the weights' dtype; the weight in any format."""
    weight = plain(weight, x.shape[-1])
    expect(weight.dim() == 2 and weight.shape[1] == x.shape[-1], f"weight: a matrix [*, {x.shape[-1]}] is expected")
    expect(bias is None or bias.shape == weight.shape[:1], f"bias: a vector of {weight.shape[0]} values is expected")
    return F.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype))
