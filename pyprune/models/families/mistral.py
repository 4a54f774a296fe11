"""Mistral (Jiang et al., 2023): Llama's blocks without biases, every attention within a sliding window or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyprune.checks import is_int
from pyprune.errors import InputError
from pyprune.models.families.family import ConfigField, Family, TransformersClasses, with_sizes
from pyprune.models.gguf_architecture import LLAMA
from pyprune.models.sizes import BlockSizes


class Mistral(Family):
    """RMSNorm, rotary attention with grouped KV heads, SiLU-gated FFN; heads need not divide the hidden size.

    llama.cpp's files of Mistral name the architecture `llama` and no window: they are read as Llama.
    """

    model_types = ("mistral",)
    classes = TransformersClasses("transformers.models.mistral.modeling_mistral", "Mistral")
    ragged_fields = (ConfigField("sliding_window", int | None, None),)
    gguf_architecture = LLAMA

    def attention_bias(self, config: dict[str, Any]) -> str:
        return ""

    def ffn_bias(self, config: dict[str, Any]) -> str:
        return ""

    def windows(self, config: dict[str, Any]) -> list[int]:
        return [config.get("sliding_window") or 0] * config["num_hidden_layers"]

    def check(self, config: dict[str, Any], where: str) -> None:
        super().check(config, where)
        window = config.get("sliding_window")
        if window is not None and (not is_int(window) or window < 1):
            raise InputError(f"{where}: sliding_window is {window!r}; null or a positive integer is expected")
        # transformers' attention takes no notice of layer_types here, but its cache does.
        kind = "full_attention" if window is None else "sliding_attention"
        other = [name for name in config.get("layer_types") or () if name != kind]
        if other:
            raise InputError(f"{where}: layer_types names {other[0]}, but sliding_window {window} makes all {kind}")

    def sized_config(self, config: dict[str, Any], sizes: BlockSizes) -> dict[str, Any]:
        if sizes.attention_bias or sizes.ffn_bias or sizes.qk_norm:
            raise InputError(f"{sizes.extras()}: a plain mistral has neither biases nor q/k-norm")
        return {**with_sizes(config, sizes), "model_type": "mistral", "architectures": ["MistralForCausalLM"]}

    def windowed_config(self, config: dict[str, Any], windows: Sequence[int]) -> dict[str, Any]:
        if len(set(windows)) > 1:
            raise InputError(f"windows that differ between blocks ({sorted(set(windows))}): a mistral has one for all")
        return {**config, "sliding_window": (windows[0] or None) if windows else config.get("sliding_window")}
