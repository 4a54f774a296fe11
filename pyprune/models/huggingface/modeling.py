"""Models whose layers differ: a family's own layers, each built from its own configuration."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModel, AutoModelForCausalLM

from pyprune.models.families import FAMILIES
from pyprune.models.families.family import Family
from pyprune.models.huggingface.configuration import config_class
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


if TYPE_CHECKING:
    Original = PreTrainedModel
else:
    Original = object  # each class has its family's besides, whose __init__ is not to run


class RaggedModel(Original):
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


class RaggedForCausalLM(Original):
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
    for place, layer_config in enumerate(config.per_layer_config):
        skip = getattr(layer_config, "skip", None) or []
        layer: Any = layer_class(_buildable(layer_config, skip), place)
        if ATTENTION in skip:
            layer.self_attn, layer.input_layernorm = NoAttention(), nn.Identity()
        else:
            layer.self_attn.config = config  # which knows when the model's attention implementation changes
            layer.self_attn.layer_idx, entry = entry, place + 1
        if MLP in skip:
            layer.mlp, layer.post_attention_layernorm = NoMLP(), nn.Identity()
        _set_biases(layer, layer_config.projection_biases or [])
        layers.append(layer)
    return layers


def _buildable(layer_config: Any, skip: list[str]) -> Any:
    """A layer's configuration with one head and one neuron where it has none: a sublayer to be thrown away."""
    buildable = copy.copy(layer_config)
    if ATTENTION in skip:
        buildable.num_attention_heads = buildable.num_key_value_heads = 1
    if MLP in skip:
        buildable.intermediate_size = 1
    return buildable


def _set_biases(layer: nn.Module, biased: list[str]) -> None:
    for name in PROJECTIONS:
        linear = getattr(layer.self_attn, name, None) or getattr(layer.mlp, name, None)
        if linear is None:
            continue
        if name not in biased:
            linear.bias = None
        elif linear.bias is None:
            linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))


def model_classes(family: Family) -> tuple[type[PreTrainedModel], type[PreTrainedModel]]:
    """A family's model whose layers differ, and the same with a head, attributes of this module: there pickles look for
    them."""
    classes, config = family.transformers_classes(), config_class(family)
    names = f"PyPrune{classes.prefix}Model", f"PyPrune{classes.prefix}ForCausalLM"
    if names[1] not in globals():
        parts = Parts(*(classes.named(part) for part in ("DecoderLayer", "RMSNorm", "RotaryEmbedding")))
        model = _subclass(names[0], RaggedModel, classes.named("Model"), config_class=config, parts=parts)
        causal = _subclass(
            names[1], RaggedForCausalLM, classes.named("ForCausalLM"), config_class=config, model_class=model
        )
        globals().update(zip(names, (model, causal), strict=True))
    return globals()[names[0]], globals()[names[1]]


def register() -> None:
    """Enter the models in AutoModel and AutoModelForCausalLM; twice is once."""
    for family in FAMILIES:
        if family.classes is not None:
            model, causal = model_classes(family)
            AutoModel.register(config_class(family), model, exist_ok=True)
            AutoModelForCausalLM.register(config_class(family), causal, exist_ok=True)


def _subclass(name: str, ours: type, theirs: type, **attributes: Any) -> type[PreTrainedModel]:
    return type(name, (ours, theirs), {"__module__": __name__, "__qualname__": name, **attributes})


for _family in FAMILIES:
    if _family.classes is not None:
        model_classes(_family)
