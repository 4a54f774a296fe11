"""The classes that can be accelerated, by model family, and their accelerated subclasses."""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, SupportsIndex

from torch import Tensor, nn

from pyprune.models.families import FAMILIES

PARTS = ("ForCausalLM", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")
"""The ends of the classes' names, in the order of `FamilyClasses`."""


class FamilyClasses(NamedTuple):
    """The classes from which transformers builds the models of one family, and its eager attention."""

    causal_lm: type[nn.Module]
    layer: type[nn.Module]
    attention: type[nn.Module]
    mlp: type[nn.Module]
    norm: type[nn.Module]
    rotary: type[nn.Module]
    eager_attention: Callable[..., tuple[Tensor, Tensor | None]]


@functools.cache
def families() -> tuple[FamilyClasses, ...]:
    """Those of all families that have any. Their modules are imported on the first call."""
    named = [family.classes for family in FAMILIES if family.classes is not None]
    return tuple(FamilyClasses._make((*map(classes.named, PARTS), classes.eager_attention())) for classes in named)


if TYPE_CHECKING:
    Original = nn.Module
else:
    Original = object  # each accelerated class has its original besides


class Accelerated(Original):
    """What every accelerated class inherits from, before its original."""

    methods: ClassVar[type[Accelerated]]  # the subclass with the accelerated methods
    original: ClassVar[type[nn.Module]]
    family: ClassVar[FamilyClasses | None]

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """For copies and pickles: the class cannot be found by its name, so it is made anew from its original."""
        reduced = super().__reduce_ex__(protocol)
        if isinstance(reduced, str):
            return reduced
        _, _, *state = reduced
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
    return vars(current)["original"] if Accelerated in current.__mro__ and "original" in vars(current) else current


def _blank(original: type[nn.Module], methods: type[Accelerated]) -> nn.Module:
    # mypy takes a module's __hash__ for its class's, and its stubs lack __newobj__.
    return copyreg.__newobj__(accelerated_class(original, methods))  # type: ignore[arg-type, attr-defined]
