"""What a family of models is to pyprune: names and sizes in the formats it is read from and written to."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from pyprune.checks import is_int, is_number
from pyprune.errors import InputError
from pyprune.models.gguf_architecture import Architecture
from pyprune.models.protocol import DecoderLike
from pyprune.models.sizes import BlockSizes, uniform_sizes, windows_of
from pyprune.models.transformers_config import transformers_config


@dataclass(frozen=True)
class TransformersClasses:
    """Where transformers has a family's classes: in `module`, each under `prefix` and the name of its part."""

    module: str
    prefix: str

    def named(self, part: str) -> Any:
        """The class of a part ("Attention", "ForCausalLM", ...). Its module is imported when first asked for."""
        return getattr(importlib.import_module(self.module), self.prefix + part)

    def eager_attention(self) -> Callable[..., Any]:
        """The module's attention in plain PyTorch."""
        return importlib.import_module(self.module).eager_attention_forward


class ConfigField(NamedTuple):
    """A field of a configuration."""

    name: str
    kind: Any
    default: Any


def with_sizes(config: dict[str, Any], sizes: BlockSizes) -> dict[str, Any]:
    """`config` with these numbers of heads and of neurons, under the names that all families share."""
    return {
        **config,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.width,
    }


class Family:
    """One family of decoder-only models: all that pyprune knows of it. A subclass states what differs from Llama's
    scheme and is entered in `families.FAMILIES`, from where reading, saving, GGUF, the models whose blocks differ and
    `accelerate` take it."""

    model_types: ClassVar[tuple[str, ...]]
    """Values of `model_type` in config.json."""
    written_as: ClassVar[tuple[str, ...]] = ()
    """Values of `model_type` that `sized_config` gives; empty: the same."""
    classes: ClassVar[TransformersClasses | None] = None
    """transformers' classes, which `accelerate` replaces and which models whose blocks differ are built from
    (`models.huggingface`); None: neither is offered."""
    ragged_fields: ClassVar[tuple[ConfigField, ...]] = ()
    """Of a configuration of such a model: the fields beside those that all families share."""
    gguf_architectures: ClassVar[tuple[str, ...]] = ()
    """Values of `general.architecture` in GGUF files."""
    gguf_architecture: ClassVar[Architecture | None] = None
    """The one that a uniform model is written as; None: none is known."""
    gguf_permutes_qk: ClassVar[bool] = False
    """Whether llama.cpp's converter interleaves the rows of q and k of each head (its own form of RoPE)."""
    gguf_optional_biases: ClassVar[bool] = False
    """Whether llama.cpp takes a bias on any projection of any block, there or not."""

    def transformers_classes(self) -> TransformersClasses:
        """`classes`, of a family that has any."""
        if self.classes is None:
            raise ValueError(f"{self.model_types[0]}: no classes of transformers are entered for this family")
        return self.classes

    def attention_bias(self, config: dict[str, Any]) -> str:
        """Which of q, k, v, o have a bias."""
        raise NotImplementedError

    def ffn_bias(self, config: dict[str, Any]) -> str:
        """Which of gate, up, down have a bias."""
        raise NotImplementedError

    def qk_norm(self, config: dict[str, Any]) -> bool:
        """Whether each head of q and k is normalised."""
        return False

    def windows(self, config: dict[str, Any]) -> list[int]:
        """The window of each block's attention (`MHA.window`), 0 for none."""
        return [0] * config["num_hidden_layers"]

    def sized_config(self, config: dict[str, Any], sizes: BlockSizes) -> dict[str, Any]:
        """`config` with these sizes in every block, in a form that plain transformers loads; else InputError."""
        raise NotImplementedError

    def windowed_config(self, config: dict[str, Any], windows: Sequence[int]) -> dict[str, Any]:
        """`config` with these windows, one a block, in a form that plain transformers loads; else InputError."""
        if any(windows):
            raise InputError(f"a window of {max(windows)} positions: a {config['model_type']} has none")
        return config

    def check(self, config: dict[str, Any], where: str) -> None:
        """InputError when `config` describes what a Decoder cannot express."""
        for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
                    "vocab_size", "max_position_embeddings"):  # fmt: skip
            if not is_int(config.get(key)) or config[key] < 1:
                raise InputError(f"{where}: {key} is {config.get(key)}; a positive integer is expected")
        if not is_int(config.get("num_hidden_layers")) or config["num_hidden_layers"] < 0:
            raise InputError(f"{where}: num_hidden_layers is {config.get('num_hidden_layers')}; a count is expected")
        if config["num_attention_heads"] % config["num_key_value_heads"]:
            raise InputError(
                f"{where}: num_attention_heads {config['num_attention_heads']} is not a multiple of"
                f" num_key_value_heads {config['num_key_value_heads']}"
            )
        if config["head_dim"] % 2:
            raise InputError(f"{where}: head_dim {config['head_dim']} is odd; an even one is expected")
        if config.get("hidden_act") != "silu":
            raise InputError(f"{where}: hidden_act {config.get('hidden_act')} is not supported; accepted: silu")
        rope = config.get("rope_parameters")
        if not isinstance(rope, dict):
            raise InputError(f"{where}: rope_parameters is {rope!r}; an object is expected")
        for key, value in (("rms_norm_eps", config.get("rms_norm_eps")), ("rope_theta", rope.get("rope_theta"))):
            if not is_number(value) or not 0 < value < math.inf:
                raise InputError(f"{where}: {key} is {value!r}; a positive number is expected")
        if not isinstance(rope.get("rope_type", "default"), str):
            raise InputError(f"{where}: rope_type is {rope['rope_type']!r}; a name is expected")
        for key in ("per_layer_config", "quantization_config"):
            if config.get(key):
                raise InputError(f"{where}: {key} is not supported; a uniform float model is accepted")

    def config_from_dict(self, raw: dict[str, Any], where: str) -> dict[str, Any]:
        """A plain config.json as transformers completes it (old and new spellings alike), checked."""
        # transformers leaves this mark on a model it read from GGUF, although the weights are plain floats by then.
        quantization = raw.get("quantization_config")
        if isinstance(quantization, dict) and quantization.get("quant_method") == "gguf":
            raw = {key: value for key, value in raw.items() if key != "quantization_config"}
        if raw.get("per_layer_config"):  # transformers would fail on it in its own words
            raise InputError(f"{where}: per_layer_config is not supported; a uniform float model is accepted")
        return self.completed(transformers_config(raw, where).to_diff_dict(), where)

    def completed(self, config: dict[str, Any], where: str) -> dict[str, Any]:
        """A configuration of transformers as a Decoder keeps it, checked."""
        for key in ("transformers_version", "_name_or_path"):
            config.pop(key, None)
        # Where a configuration names no head size, its model divides the hidden size.
        config["head_dim"] = config.get("head_dim") or config["hidden_size"] // max(1, config["num_attention_heads"])
        self.check(config, where)
        return config

    def sizes(self, config: dict[str, Any]) -> list[BlockSizes]:
        """The sizes of each block, which a plain configuration gives to all."""
        sizes = BlockSizes(
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            width=config["intermediate_size"],
            attention_bias=self.attention_bias(config),
            ffn_bias=self.ffn_bias(config),
            qk_norm=self.qk_norm(config),
        )
        return [sizes] * config["num_hidden_layers"]

    def plain_config(self, decoder: DecoderLike) -> dict[str, Any]:
        """The Hugging Face configuration with which plain transformers loads this decoder.

        InputError when it is not uniform (naming the first block that differs) or has no plain form.
        """
        sizes = uniform_sizes(decoder)
        config = self.decoder_config(decoder)
        if sizes is not None:
            config = self.sized_config(config, sizes)
        return self.windowed_config(config, windows_of(decoder.blocks))

    def decoder_config(self, decoder: DecoderLike) -> dict[str, Any]:
        """What any configuration of this decoder states beside the sizes and the windows of its blocks.

        InputError for a bias on the LM head, which none can state.
        """
        if decoder.head.bias is not None:
            raise InputError(f"{decoder.name}: a bias on the LM head cannot be saved")
        config = {key: value for key, value in decoder.config.items()
                  if key not in ("per_layer_config", "layer_types", "torch_dtype")}  # fmt: skip
        config["num_hidden_layers"] = len(decoder.blocks)
        config["tie_word_embeddings"] = decoder.tied
        config["dtype"] = str(decoder.dtype).removeprefix("torch.")
        return config
