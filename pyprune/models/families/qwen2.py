"""Qwen2 and Qwen2.5 (Qwen Team, 2024): Llama's blocks with biases on q, k and v, and windows in some of the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pyprune.checks import is_int
from pyprune.errors import InputError
from pyprune.models.families.family import ConfigField, Family, TransformersClasses, with_sizes
from pyprune.models.gguf_architecture import QKV_BIASES, Architecture
from pyprune.models.sizes import BlockSizes

_FULL, _SLIDING = "full_attention", "sliding_attention"


class Qwen2(Family):
    """RMSNorm, rotary attention with grouped KV heads and biases on q, k, v, SiLU-gated FFN.

    `layer_types` says which blocks have the window `sliding_window`; transformers makes the list from
    `use_sliding_window` and `max_window_layers` (the number of blocks before the first window) where a file has none.
    """

    model_types = ("qwen2",)
    classes = TransformersClasses("transformers.models.qwen2.modeling_qwen2", "Qwen2")
    ragged_fields: ClassVar[tuple[ConfigField, ...]] = (
        ConfigField("use_sliding_window", bool, False),
        ConfigField("sliding_window", int | None, None),
        ConfigField("max_window_layers", int, 28),
        ConfigField("layer_types", list[str] | None, None),
    )
    gguf_architectures = ("qwen2",)
    gguf_architecture = Architecture("qwen2", QKV_BIASES, whole_heads=True)

    def attention_bias(self, config: dict[str, Any]) -> str:
        return "q k v"

    def ffn_bias(self, config: dict[str, Any]) -> str:
        return ""

    def windows(self, config: dict[str, Any]) -> list[int]:
        kinds = config.get("layer_types") or [_FULL] * config["num_hidden_layers"]
        return [config["sliding_window"] if kind == _SLIDING else 0 for kind in kinds]

    def check(self, config: dict[str, Any], where: str) -> None:
        super().check(config, where)
        kinds, window = config.get("layer_types"), config.get("sliding_window")
        if kinds is None:
            return
        if not isinstance(kinds, list) or len(kinds) != config["num_hidden_layers"]:
            raise InputError(f"{where}: layer_types is {kinds!r}; one name for each of num_hidden_layers is expected")
        for kind in kinds:
            if kind not in (_FULL, _SLIDING):
                raise InputError(f"{where}: layer_types names {kind!r}; accepted: {_FULL}, {_SLIDING}")
        if _SLIDING in kinds and (not is_int(window) or window < 1):
            raise InputError(
                f"{where}: layer_types names {_SLIDING}, but sliding_window is {window!r} (use_sliding_window"
                f" {config.get('use_sliding_window')}); a positive integer is expected"
            )

    def sized_config(self, config: dict[str, Any], sizes: BlockSizes) -> dict[str, Any]:
        if (sizes.attention_bias, sizes.ffn_bias, sizes.qk_norm) != ("q k v", "", False):
            raise InputError(f"{sizes.extras()}: a plain qwen2 has biases on q, k, v, no others, and no q/k-norm")
        return {**with_sizes(config, sizes), "architectures": ["Qwen2ForCausalLM"]}

    def windowed_config(self, config: dict[str, Any], windows: Sequence[int]) -> dict[str, Any]:
        sizes = sorted(set(windows) - {0})
        if len(sizes) > 1:
            raise InputError(f"windows that differ between blocks ({sizes}): a {config['model_type']} has one size")
        kinds = [_SLIDING if window else _FULL for window in windows]
        return {
            **config,
            "layer_types": kinds,
            "use_sliding_window": bool(sizes),
            "sliding_window": sizes[0] if sizes else None,
            "max_window_layers": kinds.index(_SLIDING) if sizes else len(kinds),
        }
