"""Models that transformers runs: a copy to train, the projections that get adapters, and the way back."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pyprune.errors import InputError
from pyprune.models.transformers_decoder import TransformersDecoder
from pyprune.models.transformers_decoder.checks import checked_structure
from pyprune.models.transformers_decoder.decoder import LayerBlock


def copied(decoder: TransformersDecoder, dtype: torch.dtype) -> Any:
    """A model of its own with parameters of that dtype; buffers, such as a rotation's frequencies, stay as they are."""
    model = copy.deepcopy(decoder.model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def projections(decoder: TransformersDecoder) -> list[str]:
    """The names, in the whole model, of all linear maps within layers. InputError for a model without any."""
    prefix = decoder.structure.layers_name
    names = [
        f"{prefix}.{name}" for name, module in decoder.structure.layers.named_modules() if isinstance(module, nn.Linear)
    ]
    if not names:
        raise InputError(f"retrain: {decoder.name}: its layers have no Linear for LoRA; full is expected")
    return names


def merged(decoder: TransformersDecoder, model: Any, adapter: str) -> TransformersDecoder:
    """The decoder with what was trained in its weights: added in float32, rounded once to each weight's dtype."""
    result = copy.deepcopy(decoder.model)
    with torch.no_grad():
        if hasattr(model, "get_base_model"):
            for name, module in model.get_base_model().named_modules():
                if hasattr(module, "get_delta_weight"):
                    weight = result.get_submodule(name).weight
                    weight.copy_(weight.float() + module.get_delta_weight(adapter).float())
        else:
            trained = dict(model.named_parameters())
            for name, parameter in result.named_parameters():
                parameter.copy_(trained[name])
    structure = checked_structure(result)
    blocks = tuple(
        LayerBlock(block.index, layer) for block, layer in zip(decoder.blocks, structure.layers, strict=True)
    )
    return replace(decoder, model=result, structure=structure, blocks=blocks)


def pad_token(decoder: TransformersDecoder) -> int:
    """The padding id: the configuration's, else its end, else 0; ids outside the vocabulary are passed over."""
    end = decoder.config.get("eos_token_id")
    candidates = (decoder.config.get("pad_token_id"), end[0] if isinstance(end, (list, tuple)) else end)
    return next((int(id) for id in candidates if id is not None and 0 <= int(id) < decoder.vocab_size), 0)
