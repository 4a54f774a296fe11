"""Llama (Touvron et al., 2023)."""

from __future__ import annotations

from typing import Any

from pyprune.errors import InputError
from pyprune.models.families.family import ConfigField, Family, TransformersClasses, with_sizes
from pyprune.models.families.mistral import Mistral
from pyprune.models.gguf_architecture import LLAMA
from pyprune.models.sizes import BlockSizes


class Llama(Family):
    """RMSNorm, rotary attention with grouped KV heads, SiLU-gated FFN; biases on all projections of a sublayer
    or none."""

    model_types = ("llama",)
    written_as = ("llama", "mistral")
    classes = TransformersClasses("transformers.models.llama.modeling_llama", "Llama")
    ragged_fields = (ConfigField("attention_bias", bool, False), ConfigField("mlp_bias", bool, False))
    gguf_architectures = ("llama", "deci")
    gguf_architecture = LLAMA
    gguf_permutes_qk = True
    gguf_optional_biases = True

    def attention_bias(self, config: dict[str, Any]) -> str:
        return "q k v o" if config.get("attention_bias") else ""

    def ffn_bias(self, config: dict[str, Any]) -> str:
        return "gate up down" if config.get("mlp_bias") else ""

    def sized_config(self, config: dict[str, Any], sizes: BlockSizes) -> dict[str, Any]:
        """Llama where transformers takes the sizes, else Mistral without a window: the same mathematics, but its
        configuration allows heads that do not divide the hidden size. Mistral has no biases."""
        if sizes.attention_bias not in ("", "q k v o") or sizes.ffn_bias not in ("", "gate up down") or sizes.qk_norm:
            raise InputError(
                f"{sizes.extras()}: a plain llama has biases on all of a sublayer or on none, and no q/k-norm"
            )
        biases = (bool(sizes.attention_bias), bool(sizes.ffn_bias))
        if config["hidden_size"] % sizes.heads == 0:
            sized = {**with_sizes(config, sizes), "architectures": ["LlamaForCausalLM"]}
            return {**sized, "attention_bias": biases[0], "mlp_bias": biases[1]}
        if any(biases):
            raise InputError(
                f"{sizes.heads} heads do not divide the hidden size {config['hidden_size']}: transformers takes that"
                " only without biases, and this model has them"
            )
        dropped = ("attention_bias", "mlp_bias", "pretraining_tp")
        rest = {key: value for key, value in config.items() if key not in dropped}
        return {**Mistral().sized_config(rest, sizes), "sliding_window": None}
