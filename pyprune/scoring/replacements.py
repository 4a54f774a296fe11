"""What can stand in a sublayer's place.

A replacement of a sublayer gives what is **added to the residual stream** there: behind it the state is x + f(x), with
x `[N, T, hidden]` the state before it, not normalised. A sublayer of the model is of that form, its RMSNorm included.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models.blocks import Linear
from pyprune.scoring.layered_model import BlockPass, LayeredModel, RunSublayer

MapStates = Callable[..., Tensor]
"""From states `[N, T, hidden]` to as many."""


class Replacement(Protocol):
    """One thing that stands in a sublayer's place."""

    def on(self, block: BlockPass) -> RunSublayer:
        """How it runs in that block, the residual stream included."""

    def multiplications(self, tokens: int) -> int | None:
        """Of one token in samples of `tokens` tokens; None: as many as the sublayer that it stands for."""

    def held_bytes(self) -> int:
        """Bytes that are held while it runs, beside the model and what it is itself."""

    def digest(self) -> str | None:
        """What identifies it from one run of a program to the next; None where nothing does."""


@dataclass(frozen=True)
class WithResidual:
    """A module or function whose output is the state behind the sublayer, not what is added there: x is part of it."""

    module: MapStates


@dataclass(frozen=True, eq=False)
class MappedStates:
    """A module or function of hidden states. It is called with states `[n, T, hidden]` of whole sequences, in any
    number, and with `attention_mask=` where it has a parameter of that name: bool `[n, T]`, or None without padding. It
    must treat each sequence by itself. `residual`: whether its output is the state behind the sublayer, x included.
    """

    function: MapStates
    name: str
    residual: bool = False

    def on(self, block: BlockPass) -> RunSublayer:
        def run(x: Tensor, samples: Sequence[int]) -> Tensor:
            output = self._mapped(x, block.mask(samples)).to(x.dtype)
            return output if self.residual else x + output

        return run

    @torch.inference_mode()
    def try_out(self, model: LayeredModel) -> None:
        """Run it on two tokens of zeros; InputError where it fails, or gives something else than states."""
        x = torch.zeros(1, 2, model.hidden_size, dtype=model.state_dtype, device=model.device)
        try:
            self._mapped(x, None)
        except (RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{self.name}: fails on states {list(x.shape)} of {x.dtype}: {reason}") from error

    def _mapped(self, x: Tensor, mask: Tensor | None) -> Tensor:
        settings = {"attention_mask": mask} if _has_parameter(self.function, "attention_mask") else {}
        output = self.function(x.clone(), **settings)  # one that writes into its input writes into a copy
        if not isinstance(output, Tensor):
            raise InputError(f"{self.name}: gives {type(output).__name__}; a tensor {list(x.shape)} is expected")
        if output.shape != x.shape or not output.is_floating_point() or output.device != x.device:
            raise InputError(
                f"{self.name}: gives {output.dtype} {list(output.shape)} on {output.device}; a tensor of floats"
                f" {list(x.shape)} on {x.device} is expected"
            )
        return output

    def multiplications(self, tokens: int) -> int | None:
        if isinstance(self.function, nn.Module):
            return sum(p.numel() for p in self.function.parameters() if p.dim() > 1)
        return None

    def held_bytes(self) -> int:
        return 0

    def digest(self) -> str | None:
        if not isinstance(self.function, nn.Module):
            return None
        tensors = self.function.state_dict()
        return tensors_digest(f"{type(self.function).__qualname__} {self.function} {self.residual}", tensors.items())


@dataclass(frozen=True, eq=False)
class AddedMean:
    """One vector `[hidden]` that is added to every token: a mean update (arXiv 2407.16286)."""

    vector: Tensor

    def on(self, block: BlockPass) -> RunSublayer:
        return lambda x, samples: x + self.vector.to(x)

    def multiplications(self, tokens: int) -> int | None:
        return 0

    def held_bytes(self) -> int:
        return 0

    def digest(self) -> str | None:
        return tensors_digest("mean", [("vector", self.vector)])


@dataclass(frozen=True, eq=False)
class AddedLinear:
    """A linear map W x + b of the state, which is added to it."""

    linear: Linear

    def on(self, block: BlockPass) -> RunSublayer:
        weight, bias = self.linear.weight, self.linear.bias
        return lambda x, samples: x + F.linear(x, weight.to(x), None if bias is None else bias.to(x))

    def multiplications(self, tokens: int) -> int | None:
        return self.linear.weight.numel()

    def held_bytes(self) -> int:
        return 4 * self.linear.weight.numel()  # where it is widened

    def digest(self) -> str | None:
        return tensors_digest("linear", self.linear.tensors())


def generic_replacement(value: object, name: str, model: LayeredModel) -> Replacement | None:
    """The replacement that a value means on any model: a mean update (a tensor `[hidden]`), a linear map, a module or a
    function, `WithResidual` of one of the last two. None for anything else; InputError for a wrong size, or a
    module that does not map states to states."""
    hidden = model.hidden_size
    if isinstance(value, Tensor):
        if tuple(value.shape) != (hidden,) or not value.is_floating_point():
            raise InputError(
                f"{name}: a tensor of {value.dtype} {list(value.shape)} given; a mean update is floats [{hidden}]"
            )
        return AddedMean(value.detach())
    if isinstance(value, Linear):
        if tuple(value.weight.shape) != (hidden, hidden):
            raise InputError(f"{name}: a linear map {list(value.weight.shape)} given; [{hidden}, {hidden}] is expected")
        return AddedLinear(value)
    if isinstance(value, WithResidual):
        if not callable(value.module):
            raise InputError(f"{name}: WithResidual of {type(value.module).__name__}; a module or function is expected")
        return _tried(MappedStates(value.module, name, residual=True), model)
    if callable(value) and not isinstance(value, type):
        return _tried(MappedStates(value, name), model)
    return None


def _tried(replacement: MappedStates, model: LayeredModel) -> MappedStates:
    replacement.try_out(model)
    return replacement


def _has_parameter(function: MapStates, name: str) -> bool:
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        return name in inspect.signature(called).parameters
    except (TypeError, ValueError):  # built in
        return False


def tensors_digest(about: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of a description, and of all values of named tensors."""
    digest = hashlib.sha256(about.encode())
    for name, tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
