"""Qwen3 (Qwen Team, 2025): Qwen2 with q/k-norm in place of the biases, and a head size of its own."""

from __future__ import annotations

from typing import Any

from pyprune.errors import InputError
from pyprune.models.families.family import ConfigField, TransformersClasses, with_sizes
from pyprune.models.families.qwen2 import Qwen2
from pyprune.models.gguf_architecture import QKV_BIASES, Architecture
from pyprune.models.sizes import BlockSizes


class Qwen3(Qwen2):
    """RMSNorm, rotary attention with grouped KV heads whose q and k are normalised, SiLU-gated FFN; biases on all
    projections of the attention, or none."""

    model_types = ("qwen3",)
    classes = TransformersClasses("transformers.models.qwen3.modeling_qwen3", "Qwen3")
    ragged_fields = (*Qwen2.ragged_fields, ConfigField("attention_bias", bool, False))
    gguf_architectures = ("qwen3",)
    gguf_architecture = Architecture("qwen3", QKV_BIASES, qk_norm=True)

    def attention_bias(self, config: dict[str, Any]) -> str:
        return "q k v o" if config.get("attention_bias") else ""

    def qk_norm(self, config: dict[str, Any]) -> bool:
        return True

    def sized_config(self, config: dict[str, Any], sizes: BlockSizes) -> dict[str, Any]:
        if sizes.attention_bias not in ("", "q k v o") or sizes.ffn_bias or not sizes.qk_norm:
            raise InputError(
                f"{sizes.extras()}: a plain qwen3 has q/k-norm, biases on all of q, k, v, o or none, and no others"
            )
        sized = {**with_sizes(config, sizes), "architectures": ["Qwen3ForCausalLM"]}
        return {**sized, "attention_bias": bool(sizes.attention_bias)}
