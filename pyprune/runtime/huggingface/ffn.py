"""The feed-forward half of a decoder layer: two operators."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from transformers.activations import SiLUActivation

from pyprune import ops
from pyprune.runtime.huggingface.families import Family
from pyprune.runtime.huggingface.operators import call
from pyprune.runtime.huggingface.plain import Weights, is_plain, plain_linear, plain_weights


class FFN(NamedTuple):
    """A half whose norm and projections are plain."""

    norm: Tensor
    eps: float
    gate: Weights
    up: Weights
    down: Weights

    def __call__(self, x: Tensor) -> Tensor:
        """x + down(silu(gate(h)) * up(h)), h = RMSNorm(x)."""
        (gate, gate_bias), (up, up_bias), (down, down_bias) = self.gate, self.up, self.down
        a = call(ops.norm_gate_up, x, self.norm, self.eps, gate, up, gate_bias, up_bias)
        return call(ops.linear_residual, a, down, down_bias, x)


def plain_ffn(layer: nn.Module, family: Family, x: Tensor) -> FFN | None:
    """post_attention_layernorm and mlp of `layer`, where they are what they were and of the dtype of x; else None."""
    norm, mlp = layer._modules["post_attention_layernorm"], layer._modules["mlp"]
    dtype, device = x.dtype, x.device
    if not is_plain(mlp, family.mlp) or (scale := plain_weights(norm, family.norm, dtype, device)) is None:
        return None
    parts = mlp._modules
    linears = [plain_linear(parts[name], dtype, device) for name in ("gate_proj", "up_proj", "down_proj")]
    silu = is_plain(parts["act_fn"], SiLUActivation) or is_plain(parts["act_fn"], nn.SiLU)
    return None if None in linears or not silu else FFN(scale[0], norm.variance_epsilon, *linears)
