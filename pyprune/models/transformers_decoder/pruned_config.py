"""The configuration of a model that has lost layers: how many there are, and every list that has one entry a layer.

A configuration does not say which of its fields speak of layers, so what fits is tried: a list of as many entries as
there are layers has one for each, a rising list of numbers below that may name layers, and a number may be that of the
first layers of a kind. `pruned_model` takes the first configuration whose model computes the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from pyprune.errors import InputError

MOST = 32
"""Configurations that are tried."""


def pruned_configs(config: Any, layers: int, kept: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The configurations, as plain dicts, that may be those of the model with only the `kept` of its `layers` layers,
    the likeliest first.

    InputError where no field of the configuration is the number of layers.
    """
    settings = config.to_dict()
    text, key = config.get_text_config(decoder=True), None
    if text is not config:
        key = next(name for name in config.sub_configs if getattr(config, name, None) is text)
    fields = settings if key is None else settings[key]
    choices = _choices(fields, layers, kept, text.attribute_map.get("num_hidden_layers", "num_hidden_layers"))
    names, values = list(choices), itertools.product(*choices.values())
    for chosen in itertools.islice(values, MOST):
        edited = {**fields, **dict(zip(names, chosen, strict=True))}
        yield edited if key is None else {**settings, key: edited}


def _choices(fields: dict[str, Any], layers: int, kept: Sequence[int], count: str) -> dict[str, list[Any]]:
    """What each field that may speak of layers can become."""
    counts = [name for name, value in fields.items() if value == layers and _is_int(value) and "layer" in name]
    by_layer = [
        name for name, value in fields.items() if isinstance(value, (list, tuple, str)) and len(value) == layers
    ]
    if count not in fields and not counts and not by_layer:
        raise InputError(
            f"{fields.get('model_type')}: no field of its configuration is {layers}, the number of layers, or has as"
            " many entries"
        )
    choices: dict[str, list[Any]] = {}
    for name, value in fields.items():
        options: list[Any] = []
        if name == count or name in counts:
            # BART's decoder counts its layers in another field than its encoder.
            options = [len(kept)] if value == layers else [value]
        elif isinstance(value, (list, tuple)) and not name.endswith(("_token_id", "_token_ids", "architectures")):
            if len(value) == layers:
                options.append([value[layer] for layer in kept])
            if (
                value
                and all(map(_is_int, value))
                and sorted(set(value)) == list(value)
                and 0 <= value[0] <= value[-1] < layers
            ):
                options.append([place for place, layer in enumerate(kept) if layer in value])
        elif isinstance(value, str) and len(value) == layers and "pattern" in name:
            options = ["".join(value[layer] for layer in kept)]  # a letter for each layer
        elif _is_int(value) and ("layer" in name or name.startswith("first_k")) and 0 < value < layers:
            options = list(dict.fromkeys([value, sum(layer < value for layer in kept)]))
        if options:
            choices[name] = options
    return choices


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
