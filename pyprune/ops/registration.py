"""Registers every operator of `operators/` with torch: reference, fake, and gradient or that it has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyprune.ops import torch_version
from pyprune.ops.operators import CUDA_OPERATORS, OPERATORS
from pyprune.ops.specification import Operator

torch_version.require()

LIBRARY = torch.library.Library("pyprune", "DEF")


def _without_gradient(name: str) -> Callable[..., Tensor | None]:
    def call(*args: Any, **options: Any) -> Tensor | None:
        values = (*args, *options.values())
        flat = (item for value in values for item in (value if isinstance(value, (list, tuple)) else (value,)))
        if torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in flat):
            raise RuntimeError(f"pyprune::{name} has no gradient: call it under torch.no_grad() or detach its inputs")
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.pyprune, name)(*args, **options)

    return call


def fake_of(operator: Operator) -> Callable[..., Tensor | None]:
    """The operator's fake as torch calls it, with all arguments."""
    code = operator.fake.__code__
    names = code.co_varnames[: code.co_argcount]

    def call(*args: Any, **options: Any) -> Tensor | None:
        arguments = operator.bind(*args, **options)
        return operator.fake(*(arguments[name] for name in names))

    return call


def _register(name: str, operator: Operator) -> None:
    LIBRARY.define(name + operator.schema)
    torch.library.register_fake(f"pyprune::{name}", fake_of(operator), lib=LIBRARY)
    if operator.reference is not None:  # runs on every backend for which no kernel is registered
        LIBRARY.impl(name, operator.reference, "CompositeExplicitAutograd")
    if operator.gradient is None:
        LIBRARY.impl(name, _without_gradient(name), "Autograd")
    else:
        gradient = operator.gradient
        torch.library.register_autograd(
            f"pyprune::{name}", gradient.backward, setup_context=gradient.setup_context, lib=LIBRARY
        )


for _name, _operator in {**OPERATORS, **CUDA_OPERATORS}.items():
    _register(_name, _operator)
