"""A model without some of its layers, as plain transformers builds it from a configuration, with the same tensors."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models.tensors import one_line
from pyprune.models.transformers_decoder.checks import TOLERANCE, context_length, difference, head_logits, sample_ids
from pyprune.models.transformers_decoder.inputs import LayerInputs, captured
from pyprune.models.transformers_decoder.pruned_config import pruned_configs
from pyprune.models.transformers_decoder.structure import Structure, label, ordinary_logits
from pyprune.models.transformers_decoder.trees import PLAIN, equal_leaves, leaves, written

LONGEST = 8192
"""Tokens up to which the masks of sliding windows and chunks are compared."""


def pruned_model(model: Any, structure: Structure, kept: Sequence[int]) -> Any:
    """The model with only the `kept` of its layers, sharing its tensors; its configuration, layer indices and all that
    goes by layer are as plain transformers makes them.

    It is compared with the original run without the layers: InputError, with the reason, where no configuration of the
    family gives the same, as where a rule such as "every fourth layer" decides what a layer is.
    """
    reasons = []
    for fields in pruned_configs(model.config, len(structure.layers), kept):
        try:
            smaller = _built(model, structure, fields, kept)
        except Exception as error:  # configurations and models of each family raise what they like
            reasons.append(one_line(error))
            continue
        different = _difference(model, smaller, structure, kept)
        if different is None:
            return smaller
        reasons.append(different)
    raise InputError(
        f"{label(model)}: transformers cannot express it without layers"
        f" {[layer for layer in range(len(structure.layers)) if layer not in kept]} ({reasons[0][:300]})"
    )


def _built(model: Any, structure: Structure, fields: dict[str, Any], kept: Sequence[int]) -> Any:
    """A model of this configuration whose tensors are those of `model`, layers renumbered."""
    from transformers.initialization import no_init_weights

    config = type(model.config).from_dict(fields)
    config._attn_implementation = model.config._attn_implementation
    with no_init_weights(), _default_dtype(model.dtype):
        smaller = type(model)(config)
    places = {layer: place for place, layer in enumerate(kept)}
    numbered = re.compile(re.escape(structure.layers_name) + r"\.(\d+)\.(.*)")
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        match = numbered.fullmatch(name)
        if match is None:
            state[name] = tensor
        elif int(match[1]) in places:
            state[f"{structure.layers_name}.{places[int(match[1])]}.{match[2]}"] = tensor
    smaller.load_state_dict(state, assign=True)
    smaller.tie_weights()
    smaller.to(model.device)
    smaller.config._name_or_path = model.config._name_or_path
    if model.generation_config is not None:
        smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller.eval()


@torch.no_grad()
def _difference(model: Any, smaller: Any, structure: Structure, kept: Sequence[int]) -> str | None:
    """Where the smaller model is not the original without its layers; None where it is."""
    layers = smaller.get_submodule(structure.layers_name)
    for place, layer in enumerate(kept):
        name = _different_setting(structure.layers[layer], layers[place])
        if name is not None:
            return f"layer {layer} would be another as layer {place}: {name}"
    smaller_structure = replace(structure, layers=layers, calls=tuple(structure.calls[layer] for layer in kept))
    length = _longest_window(model)
    ids = sample_ids(model, length)[:1]
    original_arguments, pruned_arguments = (
        captured(model, structure, ids, None),
        captured(smaller, smaller_structure, ids, None),
    )
    for place, layer in enumerate(kept):
        expected = dict(leaves(original_arguments[layer]))
        for path, leaf in leaves(pruned_arguments[place]):
            if path != structure.calls[layer].hidden and not equal_leaves(leaf, expected.get(path)):
                return f"layer {layer} would be given another {written(path)} as layer {place}"
    ids = sample_ids(model)
    inputs = LayerInputs(model, structure, ids, None)
    x = inputs.embedded.clone()
    for layer in kept:
        x = inputs.call(layer, x, range(len(ids)))
    expected_logits = head_logits(structure, x)
    error = difference(ordinary_logits(smaller, ids), expected_logits)
    if not error <= TOLERANCE[expected_logits.dtype]:
        return f"its logits would differ by {error:.1e} of the largest"
    return None


def _different_setting(layer: nn.Module, other: nn.Module) -> str | None:
    """The first plain attribute in which two layers differ, their own numbers aside."""
    others = dict(other.named_modules())
    for name, module in layer.named_modules():
        twin = others.get(name)
        if type(twin) is not type(module):
            return name or "its class"
        for key, value in vars(module).items():
            numbering = any(part in key for part in ("idx", "index", "layer_id", "layer_num"))
            if key.startswith("_") or numbering or not isinstance(value, PLAIN):
                continue
            if vars(twin).get(key) != value:
                return f"{name}.{key}" if name else key
    return None


def _longest_window(model: Any) -> int:
    """Tokens that show every window and chunk of attention that the configuration names, within LONGEST."""
    config = model.config.get_text_config(decoder=True)
    sizes = [
        value
        for name, value in config.to_dict().items()
        if isinstance(value, int) and not isinstance(value, bool) and ("window" in name or "chunk" in name)
    ]
    return min(max(sizes, default=0) + 5, context_length(model) or LONGEST, LONGEST)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Tensors are made in this dtype, as transformers does while it loads a model."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
