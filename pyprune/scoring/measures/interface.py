"""What a measure is: sums over the samples' tokens, from which one number a candidate is made.

Every measure is the lower, the closer the candidate is to the original, or the better it is. There are three kinds, by
what they read of a candidate's last states: the loss of given targets, the states behind the final norm beside the
original's, and the logits beside the original's, which come as tiles of the vocabulary and are never stored whole. The
original is the model without any edit, on the same tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """What is measured on: ids `[S, T]`, a mask bool `[S, T]` or None, and labels int64 `[S, T]` or None, -100 where
    none is (as in transformers: the label at t is what the token before it should predict)."""

    input_ids: Tensor
    mask: Tensor | None = None
    labels: Tensor | None = None

    @property
    def counted(self) -> Tensor:
        """Bool `[S, T]`: the tokens that are not padding."""
        return torch.ones_like(self.input_ids, dtype=torch.bool) if self.mask is None else self.mask


class Measure(ABC):
    """A measure on fixed samples. `name`: what `measure=` calls it."""

    name: ClassVar[str]

    @abstractmethod
    def value(self, sums: Tensor) -> float:
        """The measure of a candidate from its sums over each sample, float64 `[S]`; ArithmeticError for one that is not
        a number."""


class LossMeasure(Measure):
    """A measure of -log p(target), summed: `targets`, int64 `[S, T-1]`, is what the tokens but the last should predict,
    -100 where nothing is asked. `asked`: bool `[T-1]`, the positions that go through the head; all when None. They are
    the same for all parts of the samples, so that no grouping changes a sum."""

    targets: Tensor
    asked: Tensor | None = None


class ComparingMeasure(Measure):
    """A measure of the difference to the original at each of the tokens `counted`, bool `[S, T]`."""

    def __init__(self, samples: Samples) -> None:
        self.counted = samples.counted

    def value(self, sums: Tensor) -> float:
        """The mean over all tokens that count."""
        return require_number(self.name, float(sums.sum()) / int(self.counted.sum()))


class StateMeasure(ComparingMeasure):
    """A comparison of the states behind the final norm."""

    @abstractmethod
    def distances(self, states: Tensor, original: Tensor) -> Tensor:
        """Of the candidate's and the original's states, float64 `[N, T, hidden]`: float64 `[N, T]`."""


class Comparison(Protocol):
    """The comparison of logits at `[N, T]` tokens, as far as the tiles have come."""

    def add(self, logits: Tensor, original: Tensor, first: int) -> None:
        """The candidate's and the original's logits of the vocabulary from id `first` on, float32 `[N, T, tile]`."""

    def result(self) -> Tensor:
        """After the last tile: float64 `[N, T]`."""


class LogitsMeasure(ComparingMeasure):
    """A comparison of the logits of the whole vocabulary."""

    @abstractmethod
    def comparison(self, shape: torch.Size, device: torch.device) -> Comparison:
        """A new comparison of logits at `[N, T]` tokens."""


def require_number(name: str, value: float) -> float:
    """The value; ArithmeticError when it is NaN."""
    if value != value:
        raise ArithmeticError(f"{name} is not a number: activations overflow; float32 or bfloat16 weights may help")
    return value
