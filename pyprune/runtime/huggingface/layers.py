"""The accelerated modules: a decoder layer as five operators, the rotary embedding, and single linears."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from pyprune import ops
from pyprune.runtime.attention import runs_operator
from pyprune.runtime.huggingface.cache import slot
from pyprune.runtime.huggingface.classes import Accelerated, FamilyClasses
from pyprune.runtime.huggingface.fallback import (
    Causal,
    Weights,
    any_global_hook,
    causal,
    is_plain,
    plain_linear,
    plain_weights,
)
from pyprune.runtime.rows import MAX_LAYER_ROWS, worth_it

# transformers 5.24 calls a layer's argument `past_key_values` `cache`.
CACHE = "cache" if "cache" in inspect.signature(LlamaDecoderLayer.forward).parameters else "past_key_values"

# What a model may pass on to attention without changing what it computes.
NEUTRAL = {"use_cache", "output_hidden_states", "return_dict", "cache_position", "token_type_ids", "num_items_in_batch"}

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


class Layer(Accelerated):
    """Accelerated decoder layer. Each sublayer that is what it was when transformers made it runs on operators, the
    other as it is; where neither may, or operators would not be faster, the original forward runs."""

    family: ClassVar[FamilyClasses]
    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        cache = kwargs.pop("cache", past_key_values)
        x, attention, ffn = hidden_states, None, None
        if type(position_embeddings) is Rotation and _operators_may_run(x):
            attention = plain_attention(self, self.family, x, position_embeddings, kwargs)
            ffn = plain_ffn(self, self.family, x)
        arguments = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            CACHE: cache,
            "use_cache": use_cache,
            "position_embeddings": position_embeddings,
            **kwargs,
        }
        if attention is None and ffn is None:
            return super().forward(x, **arguments)
        if attention is None:
            x = x + self.self_attn(hidden_states=self.input_layernorm(x), **arguments)[0]
        else:
            x = attention(x, attention_mask, cache, kwargs)
        return x + self.mlp(self.post_attention_layernorm(x)) if ffn is None else ffn(x)


def _operators_may_run(x: Tensor) -> bool:
    """Beside a Rotation, which comes from the model's own accelerated rotary embedding, with gradients off."""
    return (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and x.dim() == 3
        and worth_it(x, MAX_LAYER_ROWS)
        and not any_global_hook()
    )


class Attention(NamedTuple):
    """An attention sublayer whose norms and projections are plain, asked for what it always does."""

    module: Any  # of a family's attention class
    rotation: Rotation
    interface: AttentionFunction  # transformers' function for many tokens or an odd mask
    norm: Tensor
    eps: float
    q: Weights
    k: Weights
    v: Weights
    o: Weights
    q_norm: Tensor | None
    k_norm: Tensor | None

    def __call__(self, x: Tensor, mask: Tensor | None, cache: Cache | None, kwargs: dict[str, Any]) -> Tensor:
        """x + o(attention(RMSNorm(x))) for x `[B, T, hidden]`; the new keys and values are in `cache` afterwards."""
        attn, (q, q_bias), (k, k_bias), (v, v_bias), (o, o_bias) = self.module, self.q, self.k, self.v, self.o
        batch, tokens, _ = x.shape
        rotation = self.rotation
        cos, sin = rotation.tables()
        new = slot(cache, attn.layer_idx, (batch, k.shape[0] // attn.head_dim, tokens, attn.head_dim), x)
        queries = call(
            ops.norm_qkv_rope, x, self.norm, self.eps, q, k, v, q_bias, k_bias, v_bias, self.q_norm, self.k_norm,
            cos, sin, rotation.positions(batch, tokens), new.keys, new.values, None, 0,
            rotation.rows(new.start, batch, tokens),
        )  # fmt: skip
        keys, values, start = new.keep()
        visible = None
        if runs_operator(tokens, x.device):
            visible = self._visible(mask, start, keys.shape[2], batch, tokens)
        if visible is None or start is None:
            context, _ = self.interface(
                attn, queries.transpose(1, 2), keys, values, mask, dropout=0.0, scaling=attn.scaling, **kwargs
            )
        else:
            rows = rotation.rows(start, batch, tokens)
            context = call(ops.decode_attention, queries, keys, values, rows, attn.scaling, None, 0, visible.first)
        return call(ops.linear_residual, context.reshape(batch, tokens, -1), o, o_bias, x)

    def _visible(
        self, mask: Tensor | None, start: int | Tensor | None, length: int, batch: int, tokens: int
    ) -> Causal | None:
        """The mask as `decode_attention` takes it; None where it cannot.

        Reading a mask's values is not for compiled graphs: there only its absence is understood.
        """
        if not isinstance(start, int) or (mask is not None and torch.compiler.is_compiling()):
            return None
        rotation, is_causal = self.rotation, self.interface is sdpa_attention_forward
        _, visible = rotation.shared(  # with the mask itself, which keeps its id from being another's
            ("visible", id(mask), start, length, is_causal),
            lambda: (mask, causal(mask, rotation.rows(start, batch, tokens), start, length, is_causal)),
        )
        return visible


def plain_attention(
    layer: nn.Module, family: FamilyClasses, x: Tensor, rotation: Rotation, kwargs: dict[str, Any]
) -> Attention | None:
    """input_layernorm and self_attn of `layer`, where they are what they were, of the dtype of x, and asked for causal
    attention by sdpa or eager, without dropout and without its weights as an output; else None."""
    norm: Any = layer._modules["input_layernorm"]  # where they are plain, of the family's classes
    attn: Any = layer._modules["self_attn"]
    dtype, device = x.dtype, x.device
    if not is_plain(attn, family.attention) or (scale := plain_weights(norm, family.norm, dtype, device)) is None:
        return None
    interface = rotation.shared(("interface", id(attn.config)), lambda: _interface(attn.config, family))
    if interface is None or not attn.is_causal or (attn.training and attn.attention_dropout):
        return None
    if rotation[0].shape[-1] != attn.head_dim or not _is_neutral(kwargs):
        return None
    children = attn._modules
    q, k, v, o = (plain_linear(children[name], dtype, device) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    if q is None or k is None or v is None or o is None:
        return None
    head_norms: list[Tensor | None] = [None, None]
    if "q_norm" in children:
        head_norm: Any
        for i, head_norm in enumerate((children["q_norm"], children["k_norm"])):
            head_scale = plain_weights(head_norm, family.norm, dtype, device)
            if head_scale is None or head_norm.variance_epsilon != norm.variance_epsilon:
                return None
            head_norms[i] = head_scale[0]
    return Attention(attn, rotation, interface, scale[0], norm.variance_epsilon, q, k, v, o, *head_norms)


def _interface(config: Any, family: FamilyClasses) -> AttentionFunction | None:
    """The attention function that a configuration names, if it is sdpa or eager and its weights are not asked for."""
    if config.output_attentions:
        return None
    interface = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, family.eager_attention)
    return interface if interface in (sdpa_attention_forward, family.eager_attention) else None


def _is_neutral(kwargs: dict[str, Any]) -> bool:
    return all(
        value is None or name in NEUTRAL or (name == "output_attentions" and not value)
        for name, value in kwargs.items()
    )


class FFN(NamedTuple):
    """An FFN sublayer whose norm and projections are plain."""

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


def plain_ffn(layer: nn.Module, family: FamilyClasses, x: Tensor) -> FFN | None:
    """post_attention_layernorm and mlp of `layer`, where they are what they were and of the dtype of x; else None."""
    norm: Any = layer._modules["post_attention_layernorm"]  # where they are plain, of the family's classes
    mlp: Any = layer._modules["mlp"]
    dtype, device = x.dtype, x.device
    if not is_plain(mlp, family.mlp) or (scale := plain_weights(norm, family.norm, dtype, device)) is None:
        return None
    children = mlp._modules
    gate, up, down = (plain_linear(children[name], dtype, device) for name in ("gate_proj", "up_proj", "down_proj"))
    silu = is_plain(children["act_fn"], SiLUActivation) or is_plain(children["act_fn"], nn.SiLU)
    if gate is None or up is None or down is None or not silu:
        return None
    return FFN(scale[0], norm.variance_epsilon, gate, up, down)


class Rotary(Accelerated):
    """Accelerated rotary embedding: marks its result, so that layers know what it is and can share what they derive.

    Where gradients are recorded it is left unmarked: there the layers run as they were.
    """

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        pair = super().forward(x, position_ids)
        return pair if torch.is_grad_enabled() else Rotation(pair)


class Rotation(tuple[Tensor, Tensor]):
    """transformers' `position_embeddings`: cos and sin `[B or 1, T, D]`, each value twice, at i and i + D/2.

    It also keeps what layers of the same forward pass have in common.
    """

    def shared(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """make(), called once for each key and forward pass."""
        kept = self.__dict__.setdefault("kept", {})
        if key not in kept:
            kept[key] = make()
        return kept[key]

    def tables(self) -> tuple[Tensor, Tensor]:
        """cos and sin as the operators take them, float32 `[B*T or T, D/2]`; their values stay those of the dtype
        transformers rounded them to."""

        def first_half(table: Tensor) -> Tensor:
            half_dim = table.shape[-1] // 2
            return table[..., :half_dim].reshape(-1, half_dim).to(torch.float32).contiguous()

        return self.shared("tables", lambda: (first_half(self[0]), first_half(self[1])))

    def positions(self, batch: int, tokens: int) -> Tensor:
        """The table's row of each token, int64 `[B, T]`."""
        return self.shared("positions", lambda: self._positions(batch, tokens))

    def _positions(self, batch: int, tokens: int) -> Tensor:
        rows = torch.arange(self[0].shape[0] * tokens, device=self[0].device).view(-1, tokens)
        return rows.expand(batch, tokens).contiguous()

    def rows(self, start: int | Tensor, batch: int, tokens: int) -> Tensor:
        """The cache row of each token, int64 `[B, T]`: `start` and up."""

        def make() -> Tensor:
            return (torch.arange(tokens, device=self[0].device) + start).expand(batch, tokens).contiguous()

        return make() if isinstance(start, Tensor) else self.shared(("rows", start), make)


class Linear(Accelerated):
    """Accelerated nn.Linear, which reads its weights once for few rows: the LM head, and what a LoRA adapter wraps."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not worth_it(x):
            return super().forward(x)
        weights = plain_weights(self, type(self), x.dtype, x.device)
        return super().forward(x) if weights is None else call(ops.padded_linear, x, *weights)


def call(operator: torch._ops.OpOverload, *args: Any) -> Tensor:
    """operator(*args), past the check that no gradient is wanted: none is, and the check, in Python, costs as much as
    the call (6.7 us with it, 3.9 without; five calls a layer)."""
    if torch.compiler.is_compiling():
        return operator(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args)
