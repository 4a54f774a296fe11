"""A decoder layer as five operators, where they may stand in for transformers' own code."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from pyprune.runtime.huggingface.attention import plain_attention
from pyprune.runtime.huggingface.classes import Accelerated
from pyprune.runtime.huggingface.ffn import plain_ffn
from pyprune.runtime.huggingface.plain import any_global_hook
from pyprune.runtime.huggingface.rotation import Rotation
from pyprune.runtime.rows import MOST_LAYER_ROWS, worth_it

# transformers 5.24 calls a layer's argument `past_key_values` `cache`.
CACHE = "cache" if "cache" in inspect.signature(LlamaDecoderLayer.forward).parameters else "past_key_values"


class Layer(Accelerated):
    """Accelerated decoder layer. Each half that is what it was when transformers made it runs on operators, the other
    as it is; where neither may, or operators would not be faster, the original forward runs."""

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
        if _operators_may_run(x, position_embeddings):
            attention = plain_attention(self, self.family, x, position_embeddings, kwargs)
            ffn = plain_ffn(self, self.family, x)
        given = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            CACHE: cache,
            "use_cache": use_cache,
            "position_embeddings": position_embeddings,
            **kwargs,
        }
        if attention is None and ffn is None:
            return super().forward(x, **given)
        if attention is None:
            x = x + self.self_attn(hidden_states=self.input_layernorm(x), **given)[0]
        else:
            x = attention(x, position_embeddings, attention_mask, cache, kwargs)
        return x + self.mlp(self.post_attention_layernorm(x)) if ffn is None else ffn(x)


def _operators_may_run(x: Tensor, position_embeddings: tuple[Tensor, Tensor] | None) -> bool:
    """A Rotation comes from the model's own accelerated rotary embedding, with gradients off."""
    return (
        type(position_embeddings) is Rotation
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and x.dim() == 3
        and worth_it(x, MOST_LAYER_ROWS)
        and not any_global_hook()
    )
