"""The model families that can be accelerated, by the classes transformers builds them from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from pyprune.models.families import FAMILIES


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
    parts = ("ForCausalLM", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")
    known = [family.classes for family in FAMILIES if family.classes is not None]
    return tuple(Family(*map(classes.named, parts), classes.eager_attention()) for classes in known)
