"""Perplexity: exp(mean NLL) over all predicted positions of all samples (Shortened LLaMA, section 3.1)."""

from __future__ import annotations

from torch import Tensor

from pyprune.scoring.losses import IGNORED, exp_mean, targets_of
from pyprune.scoring.measures.interface import LossMeasure, Samples


class Perplexity(LossMeasure):
    name = "ppl"

    def __init__(self, samples: Samples) -> None:
        self.targets = targets_of(samples.input_ids, samples.mask)
        self._positions = int((self.targets != IGNORED).sum())

    def value(self, sums: Tensor) -> float:
        return exp_mean(float(sums.sum()), self._positions)
