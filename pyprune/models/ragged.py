"""Configurations of decoders whose blocks differ: transformers' `per_layer_config` under a `model_type` of our own.

    {"model_type": "pyprune_llama", "intermediate_size": 1536, "projection_biases": [], ...,
     "per_layer_config": {"2": {"intermediate_size": 1101, "projection_biases": ["down_proj"]},
                          "5": {"num_attention_heads": 0, "skip": ["attention"]}}}

What stands at the top is the original model's; a layer states what it has otherwise. A skipped sublayer has no heads or
no width as well: a plain `LlamaForCausalLM`, which knows nothing of `skip`, then refuses the file instead of filling
the sublayer with random weights.
"""

from __future__ import annotations

from typing import Any

from pyprune.checks import is_int
from pyprune.errors import InputError
from pyprune.models.families import Family, family_of
from pyprune.models.protocol import DecoderLike
from pyprune.models.sizes import BlockSizes, attention_in_cache, windows_of
from pyprune.models.tensors import one_line
from pyprune.models.transformers_config import transformers_config

PREFIX = "pyprune_"
ATTENTION, MLP = "attention", "mlp"  # transformers' names of the sublayers, in `skip`
_MHA_LINEARS, _FFN_LINEARS = ("q", "k", "v", "o"), ("gate", "up", "down")
PROJECTIONS = tuple(f"{name}_proj" for name in (*_MHA_LINEARS, *_FFN_LINEARS))
_COUNTS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
_PER_LAYER = (*_COUNTS, "projection_biases", "skip")


def checkpoint_config(decoder: DecoderLike) -> dict[str, Any]:
    """The configuration that a decoder is saved with: a plain one where transformers can express it, else ours.

    InputError for what neither can: windows that the family does not have, a bias on the LM head, q/k-norm in another
    family's blocks, heads of two sizes.
    """
    family = family_of(decoder.config["model_type"], decoder.name)
    try:
        return family.plain_config(decoder)
    except InputError:
        if family.classes is None:
            raise
        return _ragged_config(decoder, family, family.classes.prefix)


def is_ragged(model_type: object) -> bool:
    """Whether a `model_type` is one of ours."""
    return isinstance(model_type, str) and model_type.startswith(PREFIX)


def _ragged_config(decoder: DecoderLike, family: Family, prefix: str) -> dict[str, Any]:
    config, layers = family.decoder_config(decoder), {}
    common = {
        **{name: config[name] for name in _COUNTS},
        "projection_biases": _projections(family.attention_bias(config), family.ffn_bias(config)),
        "skip": [],
    }
    for place, (block, cached) in enumerate(zip(decoder.blocks, attention_in_cache(decoder.blocks), strict=True)):
        sizes = BlockSizes.of(block)
        _check(sizes, family, config, f"{decoder.name}: block {block.index}")
        sublayers = ((block.mha, ATTENTION), (block.ffn, MLP))
        layer = {
            "num_attention_heads": sizes.heads,
            # Of the cache's entry, which a block without attention lends: transformers can ask for its shape.
            "num_key_value_heads": common["num_key_value_heads"] if cached is None else cached.kv_heads,
            "intermediate_size": sizes.width,
            "projection_biases": _projections(sizes.attention_bias, sizes.ffn_bias),
            "skip": [name for sublayer, name in sublayers if sublayer is None],
        }
        differing = {name: value for name, value in layer.items() if value != common[name]}
        if differing:
            layers[str(place)] = differing
    config = family.windowed_config(config, windows_of(decoder.blocks))
    return {
        **config,
        "model_type": PREFIX + config["model_type"],
        "architectures": [f"PyPrune{prefix}ForCausalLM"],
        "projection_biases": common["projection_biases"],
        "per_layer_config": layers,
    }


def ragged_from_dict(raw: dict[str, Any], where: str) -> tuple[Family, dict[str, Any], list[BlockSizes]]:
    """The family, the plain configuration (the original's sizes) and each block's sizes of one of our config.json.

    InputError for what a Decoder cannot express, naming layer and value.
    """
    family = family_of(raw["model_type"].removeprefix(PREFIX), where)
    completed = transformers_config(raw, where)
    config = completed.to_diff_dict()
    for name in ("per_layer_config", "projection_biases"):
        config.pop(name, None)
    if family.classes is None:
        raise InputError(f"{where}: model_type {raw['model_type']}: this family has no models whose blocks differ")
    config |= {"model_type": family.model_types[0], "architectures": [f"{family.classes.prefix}ForCausalLM"]}
    config = family.completed(config, where)
    try:
        layers = list(completed.per_layer_config)
    except Exception as error:  # transformers validates each layer with exceptions of its own
        raise InputError(f"{where}: per_layer_config refused by transformers ({one_line(error)})") from None
    for place, differing in (raw.get("per_layer_config") or {}).items():
        for name in differing:
            if name not in _PER_LAYER:
                raise InputError(f"{where}: layer {place} has {name}; accepted: {', '.join(_PER_LAYER)}")
    sizes = [_sizes(layer, family, config, f"{where}: layer {place}") for place, layer in enumerate(layers)]
    return family, config, sizes


def _sizes(layer: Any, family: Family, config: dict[str, Any], where: str) -> BlockSizes:
    """The sizes of a block by its layer's configuration object; InputError where they cannot be."""
    skip, biased = getattr(layer, "skip", []), layer.projection_biases or []
    for name, named, accepted in (("skip", skip, (ATTENTION, MLP)), ("projection_biases", biased, PROJECTIONS)):
        for value in named:
            if value not in accepted:
                raise InputError(f"{where}: {name} names {value!r}; accepted: {', '.join(accepted)}")
    attends, has_ffn = ATTENTION not in skip, MLP not in skip
    for name, present in zip(_COUNTS, (attends, attends, has_ffn), strict=True):
        if present and not (is_int(getattr(layer, name)) and getattr(layer, name) > 0):
            raise InputError(f"{where}: {name} is {getattr(layer, name)!r}; a positive integer is expected")
    if attends and layer.num_attention_heads % layer.num_key_value_heads:
        raise InputError(
            f"{where}: num_attention_heads {layer.num_attention_heads} is not a multiple of num_key_value_heads"
            f" {layer.num_key_value_heads}"
        )
    return BlockSizes(
        heads=layer.num_attention_heads if attends else 0,
        kv_heads=layer.num_key_value_heads if attends else 0,
        head_dim=config["head_dim"] if attends else 0,
        width=layer.intermediate_size if has_ffn else 0,
        attention_bias=" ".join(name for name in _MHA_LINEARS if attends and f"{name}_proj" in biased),
        ffn_bias=" ".join(name for name in _FFN_LINEARS if has_ffn and f"{name}_proj" in biased),
        qk_norm=attends and family.qk_norm(config),
    )


def _check(sizes: BlockSizes, family: Family, config: dict[str, Any], where: str) -> None:
    if not sizes.heads:
        return
    if sizes.head_dim != config["head_dim"]:
        raise InputError(f"{where}: heads of {sizes.head_dim}; the RoPE of the model is for {config['head_dim']}")
    if sizes.qk_norm != family.qk_norm(config):
        has = "has" if family.qk_norm(config) else "has no"
        raise InputError(f"{where}: {sizes.extras()}: a {config['model_type']} {has} q/k-norm")


def _projections(*biases: str) -> list[str]:
    return [f"{name}_proj" for names in biases for name in names.split()]
