"""What an operator is: the one description from which registration, exports, kernel lists and the digest follow.

Each file in `operators/` describes one operator, which has the file's name:

    SCHEMA     its signature for torch, a literal string: the build reads it without importing anything
    reference  its implementation in plain PyTorch, written to be read: tests compare with it, and it runs where no
               kernel does
    fake       what it gives, for tracing (torch.compile, meta tensors): shape and dtype without values
    OPERATOR   these together, with the devices that have kernels

A kernel registers itself: a C++ file in csrc/cpu or csrc/cuda by STABLE_TORCH_LIBRARY_IMPL, a Triton kernel in
triton_kernels/registration.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gradient:
    """An operator's backward pass, as `torch.library.register_autograd` takes it."""

    backward: Callable[..., Any]
    setup_context: Callable[..., None]


@dataclass(frozen=True)
class Route:
    """How an operator of the CUDA library stands in for another operator, where `takes` accepts its arguments.

    extra: arguments that the other operator does not have.
    """

    extra: Mapping[str, object] = field(default_factory=dict)
    takes: Callable[[dict[str, Any]], bool] = lambda arguments: True


@dataclass(frozen=True)
class Operator:
    """One operator.

    fake takes those of the schema's arguments that it names. kernels: "cpu" (csrc/cpu) and "gpu" (Triton). gradient:
    None where there is none, and asking for one is a RuntimeError. routes: for an operator of the CUDA library, the
    operators that it stands in for.
    """

    schema: str
    fake: Callable[..., Tensor | None]
    reference: Callable[..., Any] | None = None
    kernels: tuple[str, ...] = ()
    gradient: Gradient | None = None
    routes: Mapping[str, Route] = field(default_factory=dict)

    @cached_property
    def defaults(self) -> dict[str, object]:
        """The schema's arguments in order, with their defaults (None where there is none)."""
        return {
            argument.name: argument.default_value for argument in torch._C.parse_schema(f"f{self.schema}").arguments
        }

    def bind(self, *args: Any, **options: Any) -> dict[str, Any]:
        """The arguments of a call by name, defaults filled in."""
        return {**self.defaults, **dict(zip(self.defaults, args, strict=False)), **options}
