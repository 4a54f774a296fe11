"""Accelerated classes: a transformers class with some of its methods replaced, under its own name."""

from __future__ import annotations

import copyreg
import functools
from typing import Any, ClassVar

from torch import nn

from pyprune.runtime.huggingface.families import Family, families


class Accelerated:
    """What every accelerated class inherits from, before its original."""

    part: ClassVar[type]  # the subclass of Accelerated with the methods
    original: ClassVar[type[nn.Module]]
    family: ClassVar[Family | None]

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        """For copies and pickles: the class cannot be found by its name, so it is made anew from its original."""
        _, _, *state = super().__reduce_ex__(protocol)
        return _blank, (self.original, self.part), *state


@functools.cache
def accelerated_class(original: type[nn.Module], part: type[Accelerated]) -> type[nn.Module]:
    """`original` with the methods of `part` before its own. It keeps its name: libraries look modules up by it."""
    body = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "part": part,
        "original": original,
        "family": next((family for family in families() if original in family), None),
    }
    return type(original.__name__, (part, original), body)


def original_class(current: type) -> type:
    """The class that `accelerated_class` made `current` from; any other class is its own original."""
    return current.original if Accelerated in current.__mro__ and "original" in vars(current) else current


def _blank(original: type[nn.Module], part: type[Accelerated]) -> nn.Module:
    return copyreg.__newobj__(accelerated_class(original, part))
