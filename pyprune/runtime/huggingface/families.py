"""The model families that can be accelerated, by the classes transformers builds them from."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

NAMES = ("llama", "mistral", "qwen2", "qwen3")


class Family(NamedTuple):
    """One family's classes, and its eager attention."""

    causal_lm: type[nn.Module]
    layer: type[nn.Module]
    attention: type[nn.Module]
    mlp: type[nn.Module]
    norm: type[nn.Module]
    rotary: type[nn.Module]
    eager_attention: Callable


@functools.cache
def families() -> tuple[Family, ...]:
    """All of them. Their modules are imported when first asked for."""
    found = []
    for name in NAMES:
        module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        parts = ("ForCausalLM", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")
        classes = (getattr(module, name.capitalize() + part) for part in parts)
        found.append(Family(*classes, module.eager_attention_forward))
    return tuple(found)
