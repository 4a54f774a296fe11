"""KL divergence of the candidate's next-token distribution q from the original's p, mean over all tokens, in nats.

With logits m of the candidate and l of the original, of which tiles of the vocabulary come one by one,

    KL(p || q) = sum_i p_i (l_i - m_i) - log sum_i exp(l_i) + log sum_i exp(m_i).

Each sum of exponentials is held relative to the largest logit so far, and rescaled when a larger one comes. All of it
is in float64: the three terms are of the size of logits, and nearly cancel where a candidate is close to the original.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.scoring.measures.interface import Comparison, LogitsMeasure


class KLDivergence(LogitsMeasure):
    name = "kl"

    def comparison(self, shape: torch.Size, device: torch.device) -> Comparison:
        return _Divergence(shape, device)


class _Divergence:
    """sum_i exp(l_i), sum_i exp(m_i) and sum_i exp(l_i) (l_i - m_i) so far."""

    def __init__(self, shape: torch.Size, device: torch.device) -> None:
        self._original, self._candidate = _ExpSum(shape, device), _ExpSum(shape, device)
        self._differences = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, original: Tensor, first: int) -> None:
        wide, wide_original = logits.double(), original.double()
        exponentials, rescaled = self._original.add(wide_original)
        self._differences.mul_(rescaled).add_(exponentials.mul_(wide_original - wide).sum(-1))
        self._candidate.add(wide)

    def result(self) -> Tensor:
        return self._differences / self._original.total + self._candidate.log() - self._original.log()


class _ExpSum:
    """sum_i exp(l_i) as `total` * exp(`largest`)."""

    def __init__(self, shape: torch.Size, device: torch.device) -> None:
        self.largest = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        self.total = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Add a tile; gives its exp(l_i - largest), and by what older sums are to be multiplied."""
        largest = torch.maximum(self.largest, logits.amax(-1))
        rescaled = (self.largest - largest).exp()
        exponentials = (logits - largest[..., None]).exp_()
        self.total.mul_(rescaled).add_(exponentials.sum(-1))
        self.largest = largest
        return exponentials, rescaled

    def log(self) -> Tensor:
        return self.total.log() + self.largest
