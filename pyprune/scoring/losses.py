"""The formulas around the loss of predicted tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

IGNORED = -100
"""The target of a position that predicts nothing."""


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
