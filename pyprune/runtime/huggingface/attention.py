"""The attention half of a decoder layer: norm, projections, RoPE and cache in one operator, attention, output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pyprune import ops
from pyprune.runtime.attention import runs_operator
from pyprune.runtime.huggingface.cache import place
from pyprune.runtime.huggingface.families import Family
from pyprune.runtime.huggingface.mask import Causal, causal
from pyprune.runtime.huggingface.operators import call
from pyprune.runtime.huggingface.plain import Weights, is_plain, plain_linear, plain_weights
from pyprune.runtime.huggingface.rotation import Rotation

# What a model may pass on to attention without changing what it computes.
NEUTRAL = {"use_cache", "output_hidden_states", "return_dict", "cache_position", "token_type_ids", "num_items_in_batch"}


class Attention(NamedTuple):
    """A half whose norms and projections are plain, asked for what it always does."""

    module: nn.Module
    interface: Callable[..., tuple[Tensor, Tensor | None]]  # transformers' function for many tokens or an odd mask
    norm: Tensor
    eps: float
    q: Weights
    k: Weights
    v: Weights
    o: Weights
    q_norm: Tensor | None
    k_norm: Tensor | None

    def __call__(
        self, x: Tensor, rotation: Rotation, mask: Tensor | None, cache: Cache | None, kwargs: dict[str, Any]
    ) -> Tensor:
        """x + o(attention(RMSNorm(x))) for x `[B, T, hidden]`; the new keys and values are in `cache` afterwards."""
        attn, (q, q_bias), (k, k_bias), (v, v_bias), (o, o_bias) = self.module, self.q, self.k, self.v, self.o
        batch, tokens, _ = x.shape
        cos, sin = rotation.tables()
        new = place(cache, attn.layer_idx, (batch, k.shape[0] // attn.head_dim, tokens, attn.head_dim), x)
        queries = call(
            ops.norm_qkv_rope, x, self.norm, self.eps, q, k, v, q_bias, k_bias, v_bias, self.q_norm, self.k_norm,
            cos, sin, rotation.positions(batch, tokens), new.keys, new.values, None, 0,
            rotation.rows(new.start, batch, tokens),
        )  # fmt: skip
        keys, values, start = new.keep()
        seen = (
            self._seen(rotation, mask, start, keys.shape[2], batch, tokens) if runs_operator(tokens, x.device) else None
        )
        if seen is None:
            context, _ = self.interface(
                attn, queries.transpose(1, 2), keys, values, mask, dropout=0.0, scaling=attn.scaling, **kwargs
            )
        else:
            rows = rotation.rows(start, batch, tokens)
            context = call(ops.decode_attention, queries, keys, values, rows, attn.scaling, None, 0, seen.first)
        return call(ops.linear_residual, context.reshape(batch, tokens, -1), o, o_bias, x)

    def _seen(
        self, rotation: Rotation, mask: Tensor | None, start: int | Tensor | None, length: int, batch: int, tokens: int
    ) -> Causal | None:
        """The mask as `decode_attention` takes it; None where it cannot.

        Reading a mask's values is not for compiled graphs: there only its absence is understood.
        """
        if not isinstance(start, int) or (mask is not None and torch.compiler.is_compiling()):
            return None
        is_causal = self.interface is sdpa_attention_forward
        found = rotation.shared(  # with the mask itself, which keeps its id from being another's
            ("seen", id(mask), start, length, is_causal),
            lambda: (mask, causal(mask, rotation.rows(start, batch, tokens), start, length, is_causal)),
        )
        return found[1]


def plain_attention(
    layer: nn.Module, family: Family, x: Tensor, rotation: Rotation, kwargs: dict[str, Any]
) -> Attention | None:
    """input_layernorm and self_attn of `layer`, where they are what they were, of the dtype of x, and asked for causal
    attention by sdpa or eager, without dropout and without its weights as an output; else None."""
    norm, attn = layer._modules["input_layernorm"], layer._modules["self_attn"]
    dtype, device = x.dtype, x.device
    if not is_plain(attn, family.attention) or (scale := plain_weights(norm, family.norm, dtype, device)) is None:
        return None
    interface = rotation.shared(("interface", id(attn.config)), lambda: _interface(attn.config, family))
    if interface is None or not attn.is_causal or (attn.training and attn.attention_dropout):
        return None
    if rotation[0].shape[-1] != attn.head_dim or not _is_neutral(kwargs):
        return None
    parts = attn._modules
    linears = [plain_linear(parts[name], dtype, device) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    if None in linears:
        return None
    head_norms: list[Tensor | None] = [None, None]
    if "q_norm" in parts:
        for i, head_norm in enumerate((parts["q_norm"], parts["k_norm"])):
            head_scale = plain_weights(head_norm, family.norm, dtype, device)
            if head_scale is None or head_norm.variance_epsilon != norm.variance_epsilon:
                return None
            head_norms[i] = head_scale[0]
    return Attention(attn, interface, scale[0], norm.variance_epsilon, *linears, *head_norms)


def _interface(config: Any, family: Family) -> Callable[..., tuple[Tensor, Tensor | None]] | None:
    """The attention function that a configuration names, if it is sdpa or eager and its weights are not asked for."""
    if config.output_attentions:
        return None
    named = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, family.eager_attention)
    return named if named in (sdpa_attention_forward, family.eager_attention) else None


def _is_neutral(kwargs: dict[str, Any]) -> bool:
    return all(
        value is None or name in NEUTRAL or (name == "output_attentions" and not value)
        for name, value in kwargs.items()
    )
