"""FinerCut's output distance: the Euclidean norm of the difference of all logits of a sample, mean over samples.

|| L - L_original ||_F over `[T, vocabulary]`, which is what its authors' program minimises; padding is left out here.
Source: FinerCut (Zhang et al. 2024, arXiv 2405.18218) and its code, `dissect/evaluators/output.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.scoring.measures.interface import Comparison, LogitsMeasure, require_number


class FinerCut(LogitsMeasure):
    name = "finercut"

    def comparison(self, shape: torch.Size, device: torch.device) -> Comparison:
        return _SquaredDistance(shape, device)

    def value(self, sums: Tensor) -> float:
        """The mean over the samples that have tokens; `sums` are of squares."""
        samples = self.counted.any(1).to(sums.device)
        return require_number(self.name, float(sums[samples].sqrt().mean()))


class _SquaredDistance:
    """sum_i (l_i - m_i)^2 so far."""

    def __init__(self, shape: torch.Size, device: torch.device) -> None:
        self._total = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, original: Tensor, first: int) -> None:
        self._total += (logits - original).square_().sum(-1)

    def result(self) -> Tensor:
        return self._total
