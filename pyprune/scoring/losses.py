"""Losses of candidates as data, and the formulas around them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100
"""The target of a position that predicts nothing."""


@dataclass(frozen=True)
class Losses:
    """Summed negative log-likelihood of each candidate on each sample in nats, float64 `[candidates, S]`, and the
    number of predicted positions of all samples."""

    by_sample: Tensor
    positions: int

    @property
    def totals(self) -> list[float]:
        """Each candidate's sum over all samples."""
        return self.by_sample.sum(1).tolist()

    def __add__(self, other: Losses) -> Losses:
        """The losses of the same candidates on the samples of both."""
        return Losses(torch.cat([self.by_sample, other.by_sample], 1), self.positions + other.positions)


def predicted_positions(targets: Tensor) -> int:
    """How many of the `targets [S, T-1]` are tokens."""
    return int((targets != IGNORED).sum())


def targets_of(input_ids: Tensor, mask: Tensor | None) -> Tensor:
    """The token after each one, int64 `[S, T-1]`; IGNORED where either of the two is padding."""
    targets = input_ids[:, 1:].to(torch.int64)
    return targets if mask is None else targets.masked_fill(~(mask[:, 1:] & mask[:, :-1]), IGNORED)


def exp_mean(total: float, positions: int) -> float:
    """exp(total / positions), infinite where float64 cannot hold it; ArithmeticError for a loss that is NaN."""
    mean = total / positions
    if math.isnan(mean):
        raise ArithmeticError("the loss is not a number: activations overflow; float32 or bfloat16 weights may help")
    return math.exp(mean) if mean < 709 else math.inf
