"""Choosing the next token from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyprune.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: greedy at temperature 0; else softmax(logits / temperature) over the `top_k` best tokens,
    cut to the smallest set whose probability reaches `top_p` (Holtzman et al., nucleus sampling)."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature: {self.temperature} given; 0 (greedy) or a positive number is accepted")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k: {self.top_k} given; 1 or more is accepted")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p: {self.top_p} given; more than 0 and at most 1 is accepted")

    def choose(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One token id `[B]` for each row of `logits [B, V]`."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        logits = logits.float()
        scores = (logits - logits.amax(dim=-1, keepdim=True)) / self.temperature  # the best is 0: nothing overflows
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            best = scores.topk(self.top_k, dim=-1)
            scores = torch.full_like(scores, -math.inf).scatter(-1, best.indices, best.values)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = scores.sort(dim=-1, descending=True)
            probability = ordered.softmax(dim=-1)
            before = probability.cumsum(dim=-1) - probability  # of all better tokens: the best one always stays
            ordered = ordered.masked_fill(before >= self.top_p, -math.inf)
            scores = torch.full_like(scores, -math.inf).scatter(-1, order, ordered)
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=generator).squeeze(-1)
