"""The classes that can be accelerated, by model family, and their accelerated subclasses."""

from __future__ import annotations

import copyreg
import functools
import importlib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


class Family(NamedTuple):
    """The classes from which transformers builds the models of one family, and its eager attention."""

    causal_lm: type[nn.Module]
    layer: type[nn.Module]
    attention: type[nn.Module]
    mlp: type[nn.Module]
    norm: type[nn.Module]
    rotary: type[nn.Module]
    eager_attention: Callable[..., tuple[Tensor, Tensor | None]]


@functools.cache
def families() -> tuple[Family, ...]:
    """All of them. Their modules are imported on the first call."""
    return tuple(_family(name) for name in FAMILIES)


def _family(name: str) -> Family:
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    parts = ("ForCausalLM", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")
    return Family(*(getattr(module, name.capitalize() + part) for part in parts), module.eager_attention_forward)


class Accelerated:
    """What every accelerated class inherits from, before its original."""

    methods: ClassVar[type[Accelerated]]  # the subclass with the accelerated methods
    original: ClassVar[type[nn.Module]]
    family: ClassVar[Family | None]

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        """For copies and pickles: the class cannot be found by its name, so it is made anew from its original."""
        _, _, *state = super().__reduce_ex__(protocol)
        return _blank, (self.original, self.methods), *state


@functools.cache
def accelerated_class(original: type[nn.Module], methods: type[Accelerated]) -> type[nn.Module]:
    """`original` with the methods of `methods` before its own. It keeps its name: libraries look modules up by it."""
    body = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "methods": methods,
        "original": original,
        "family": next((family for family in families() if original in family), None),
    }
    return type(original.__name__, (methods, original), body)


def original_class(current: type) -> type:
    """The class that `accelerated_class` made `current` from; any other class is its own original."""
    return current.original if Accelerated in current.__mro__ and "original" in vars(current) else current


def _blank(original: type[nn.Module], methods: type[Accelerated]) -> nn.Module:
    return copyreg.__newobj__(accelerated_class(original, methods))
