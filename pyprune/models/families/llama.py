"""Llama (Touvron et al., 2023), and Mistral where its attention has no window: the same blocks."""

from __future__ import annotations

from typing import Any

from pyprune.errors import InputError
from pyprune.models.families.family import BlockSizes, Family


class Llama(Family):
    """RMSNorm, rotary attention with grouped KV heads, SiLU-gated FFN; biases on all projections of a half or none."""

    model_types = ("llama", "mistral")
    gguf_architectures = ("llama",)
    gguf_permutes_qk = True

    def attention_bias(self, config: dict[str, Any]) -> str:
        return "q k v o" if config.get("attention_bias") else ""

    def ffn_bias(self, config: dict[str, Any]) -> str:
        return "gate up down" if config.get("mlp_bias") else ""

    def check(self, config: dict[str, Any], where: str) -> None:
        super().check(config, where)
        window = config.get("sliding_window")
        if config["model_type"] == "mistral" and window is not None:
            raise InputError(f"{where}: sliding_window {window} is not supported; accepted: mistral with null")

    def sized_config(self, config: dict[str, Any], sizes: BlockSizes) -> dict[str, Any]:
        """Llama where transformers takes the sizes, else Mistral without a window: the same mathematics, but its
        configuration allows heads that do not divide the hidden size. Mistral has no biases."""
        biases = (sizes.attention_bias, sizes.ffn_bias)
        if sizes.attention_bias not in ("", "q k v o") or sizes.ffn_bias not in ("", "gate up down"):
            raise InputError(f"biases on {' '.join(biases).strip()} only: a plain Llama has them on all or on none")
        sized = {
            **config,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "head_dim": sizes.head_dim,
            "intermediate_size": sizes.width,
        }
        if config["model_type"] == "llama" and config["hidden_size"] % sizes.heads == 0:
            sized.update(attention_bias=bool(biases[0]), mlp_bias=bool(biases[1]), architectures=["LlamaForCausalLM"])
            return sized
        if any(biases):
            raise InputError(
                f"{sizes.heads} heads do not divide the hidden size {config['hidden_size']}: transformers takes that"
                " only without biases, and this model has them"
            )
        for key in ("attention_bias", "mlp_bias", "pretraining_tp"):
            sized.pop(key, None)
        sized.update(model_type="mistral", sliding_window=None, architectures=["MistralForCausalLM"])
        return sized
