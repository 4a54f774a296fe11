"""Configurations of models whose layers differ, in transformers' `per_layer_config`.

A layer may have `num_attention_heads`, `num_key_value_heads`, `intermediate_size` and `projection_biases` (which of
q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj have a bias) of its own, and `skip` sublayers, "attention"
or "mlp". transformers checks and keeps all of it, but its models do not: `LlamaModel` builds every layer from the
global sizes.

The classes stand on PreTrainedConfig alone: they are made while transformers' Auto classes are being imported
(`pyprune.registration`), when LlamaConfig and the others need not be there yet.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig

from pyprune.models.families import FAMILIES
from pyprune.models.families.family import Family
from pyprune.models.ragged import PREFIX


@strict
class RaggedConfig(PreTrainedConfig):
    """What the families share, under their names.

    The numbers are those of Llama-7B, as LlamaConfig has them: a saved configuration states its own.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    attention_dropout: int | float | None = 0.0
    projection_biases: list[str] | None = None
    if TYPE_CHECKING:
        layer_types: list[str] | None  # where a family's `ragged_fields` name it

    def __post_init__(self, **kwargs: Any) -> None:
        layer_types = "layer_types" in type(self).__dataclass_fields__
        if layer_types and self.layer_types is None:
            self.layer_types = ["full_attention"] * self.num_hidden_layers
        super().__post_init__(**kwargs)
        _before_use()

    def common(self) -> RaggedConfig:
        """A copy without what layers have of their own: transformers' RoPE functions ask for the number of heads, of
        which a configuration whose layers differ gives none."""
        common = copy.copy(self)
        common.per_layer_config = None
        return common

    def validate_rope(self) -> None:
        super(RaggedConfig, self.common()).validate_rope()

    def validate_architecture(self) -> None:
        """ValueError for a layer whose KV heads do not divide its heads; heads need not divide the hidden size."""
        for place, layer in enumerate(self.per_layer_config):
            heads, kv_heads = layer.num_attention_heads, layer.num_key_value_heads
            if heads and (not kv_heads or heads % kv_heads):
                raise ValueError(f"layer {place}: {kv_heads} key-value heads do not divide {heads} heads")


def config_class(family: Family) -> type[RaggedConfig]:
    """The configuration class of a family's models whose layers differ, an attribute of this module: there pickles look
    for it."""
    name = f"PyPrune{family.transformers_classes().prefix}Config"
    if name not in globals():
        body = {
            "__module__": __name__,
            "__qualname__": name,
            "__annotations__": {field.name: field.kind for field in family.ragged_fields},
            "model_type": PREFIX + family.model_types[0],
            **{field.name: field.default for field in family.ragged_fields},
        }
        globals()[name] = strict(type(name, (RaggedConfig,), body))
    return globals()[name]


def _nothing() -> None:
    """What is called before a configuration is used, until `register` says what."""


_before_use: Callable[[], None] = _nothing


def register(before_use: Callable[[], None]) -> None:
    """Enter the configurations in AutoConfig; twice is once.

    before_use: called whenever a configuration is made, to register the models. It is not called here: within
    transformers' own imports its modelling code cannot be imported.
    """
    global _before_use
    _before_use = before_use
    for family in FAMILIES:
        if family.classes is not None:
            config = config_class(family)
            AutoConfig.register(config.model_type, config, exist_ok=True)


for _family in FAMILIES:
    if _family.classes is not None:
        config_class(_family)
