"""Models whose layers differ: a family's own layers, each built from its own configuration."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModel, AutoModelForCausalLM
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from pyprune.models.huggingface.configuration import (
    PyPruneLlamaConfig,
    PyPruneMistralConfig,
    PyPruneQwen2Config,
    PyPruneQwen3Config,
)
from pyprune.models.ragged import ATTENTION, MLP, PROJECTIONS


class Parts(NamedTuple):
    """What a family builds its model from."""

    layer: type[nn.Module]
    norm: type[nn.Module]
    rotary: type[nn.Module]


class NoAttention(nn.Module):
    """Attention that was removed: zeros for the residual stream."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class NoMLP(nn.Module):
    """An FFN that was removed: zeros for the residual stream."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.zeros_like(hidden_states)


class RaggedModel:
    """`LlamaModel.__init__` with layers that differ; everything else is the family's own."""

    parts: ClassVar[Parts]

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers reads the class's file for it, where the family's attention is not

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(ragged_layers(config, self.parts.layer))
        self.norm = self.parts.norm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = self.parts.rotary(config=config.common())
        self.gradient_checkpointing = False
        self.has_sliding_layers = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        self.post_init()


class RaggedForCausalLM:
    """`LlamaForCausalLM.__init__` around such a model."""

    model_class: ClassVar[type[nn.Module]]
    _can_set_attn_implementation = RaggedModel._can_set_attn_implementation

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        self.model = self.model_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


def ragged_layers(config: Any, layer_class: type[nn.Module]) -> list[nn.Module]:
    """The layers that `config.per_layer_config` describes.

    The cache has an entry for each layer, of which the first must hold something, since transformers asks it for the
    length: a layer without attention lends its entry to the next one that has it.
    """
    layers, entry = [], 0
    for place, own in enumerate(config.per_layer_config):
        skip = getattr(own, "skip", None) or []
        layer = layer_class(_buildable(own, skip), place)
        if ATTENTION in skip:
            layer.self_attn, layer.input_layernorm = NoAttention(), nn.Identity()
        else:
            layer.self_attn.config = config  # which knows when the model's attention implementation changes
            layer.self_attn.layer_idx, entry = entry, place + 1
        if MLP in skip:
            layer.mlp, layer.post_attention_layernorm = NoMLP(), nn.Identity()
        _set_biases(layer, own.projection_biases or [])
        layers.append(layer)
    return layers


def _buildable(own: Any, skip: list[str]) -> Any:
    """A layer's configuration with one head and one neuron where it has none: a half to be thrown away."""
    own = copy.copy(own)
    if ATTENTION in skip:
        own.num_attention_heads = own.num_key_value_heads = 1
    if MLP in skip:
        own.intermediate_size = 1
    return own


def _set_biases(layer: nn.Module, biased: list[str]) -> None:
    for name in PROJECTIONS:
        linear = getattr(layer.self_attn, name, None) or getattr(layer.mlp, name, None)
        if linear is None:
            continue
        if name not in biased:
            linear.bias = None
        elif linear.bias is None:
            linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))


class PyPruneLlamaModel(RaggedModel, llama.LlamaModel):
    config_class = PyPruneLlamaConfig
    parts = Parts(llama.LlamaDecoderLayer, llama.LlamaRMSNorm, llama.LlamaRotaryEmbedding)


class PyPruneLlamaForCausalLM(RaggedForCausalLM, llama.LlamaForCausalLM):
    config_class = PyPruneLlamaConfig
    model_class = PyPruneLlamaModel


class PyPruneMistralModel(RaggedModel, mistral.MistralModel):
    config_class = PyPruneMistralConfig
    parts = Parts(mistral.MistralDecoderLayer, mistral.MistralRMSNorm, mistral.MistralRotaryEmbedding)


class PyPruneMistralForCausalLM(RaggedForCausalLM, mistral.MistralForCausalLM):
    config_class = PyPruneMistralConfig
    model_class = PyPruneMistralModel


class PyPruneQwen2Model(RaggedModel, qwen2.Qwen2Model):
    config_class = PyPruneQwen2Config
    parts = Parts(qwen2.Qwen2DecoderLayer, qwen2.Qwen2RMSNorm, qwen2.Qwen2RotaryEmbedding)


class PyPruneQwen2ForCausalLM(RaggedForCausalLM, qwen2.Qwen2ForCausalLM):
    config_class = PyPruneQwen2Config
    model_class = PyPruneQwen2Model


class PyPruneQwen3Model(RaggedModel, qwen3.Qwen3Model):
    config_class = PyPruneQwen3Config
    parts = Parts(qwen3.Qwen3DecoderLayer, qwen3.Qwen3RMSNorm, qwen3.Qwen3RotaryEmbedding)


class PyPruneQwen3ForCausalLM(RaggedForCausalLM, qwen3.Qwen3ForCausalLM):
    config_class = PyPruneQwen3Config
    model_class = PyPruneQwen3Model


def register() -> None:
    """Enter the models in AutoModel and AutoModelForCausalLM; twice is once."""
    for model in (
        PyPruneLlamaForCausalLM, PyPruneMistralForCausalLM, PyPruneQwen2ForCausalLM, PyPruneQwen3ForCausalLM
    ):  # fmt: skip
        AutoModel.register(model.config_class, model.model_class, exist_ok=True)
        AutoModelForCausalLM.register(model.config_class, model, exist_ok=True)
