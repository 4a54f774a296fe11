"""Choosing the next token from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyprune.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from logits.

    First `repetition_penalty` (CTRL, Keskar et al. 2019, as transformers has it): the logit of each token that the
    sequence already holds is divided by it where positive and multiplied by it where negative. Then greedy at
    temperature 0; else from softmax(logits / temperature) over the `top_k` best tokens, cut to the smallest set whose
    probability reaches `top_p` (nucleus sampling, Holtzman et al. 2020), less the tokens whose probability is below
    `min_p` times the best one's.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        # The bounds keep every score finite in float32.
        if self.temperature != 0 and not 1e-6 <= self.temperature <= 1e6:
            raise InputError(f"temperature: {self.temperature} given; 0 (greedy), or 1e-6 to 1e6 is accepted")
        if self.top_k is not None and (not hasattr(self.top_k, "__index__") or self.top_k < 1):
            raise InputError(f"top_k: {self.top_k} given; a whole number from 1 is accepted")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p: {self.top_p} given; more than 0 and at most 1 is accepted")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise InputError(f"min_p: {self.min_p} given; 0 to 1 is accepted")
        if not 1e-3 <= self.repetition_penalty <= 1e3:
            raise InputError(f"repetition_penalty: {self.repetition_penalty} given; 0.001 to 1000 is accepted")

    @property
    def penalizes(self) -> bool:
        """Whether it matters which tokens a sequence already holds."""
        return self.repetition_penalty != 1

    def choose(self, logits: Tensor, uniform: Tensor | None, held: Tensor | None = None) -> Tensor:
        """One token id `[B]` for each row of `logits [B, V]`.

        uniform: numbers in [0, 1), float64 `[B]`, that decide (greedy takes none). held: bool `[B, V]`, the tokens
        that each sequence holds.
        """
        scores = self.penalized(logits, held)
        if self.temperature == 0:
            return scores.argmax(dim=-1)
        # The inverse of the distribution function, summed in float64 so that unlikely tokens keep their share.
        reached = self.kept(scores).softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
        total = reached[:, -1:]
        point = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
        if logits.device.type == "cpu" and not bool(total.isfinite().all()):  # on a GPU looking would mean waiting
            raise RuntimeError("the model's logits are not finite: nothing can be sampled from them")
        return torch.searchsorted(reached, point, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)

    def penalized(self, logits: Tensor, held: Tensor | None) -> Tensor:
        """Logits `[B, V]` after the repetition penalty."""
        if held is None or not self.penalizes:
            return logits
        lowered = torch.where(logits < 0, logits * self.repetition_penalty, logits / self.repetition_penalty)
        return torch.where(held, lowered, logits)

    def kept(self, logits: Tensor) -> Tensor:
        """Logits / temperature less their greatest, `[B, V]`; -inf where top_k, top_p or min_p cut a token off."""
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
        if self.min_p:
            scores = scores.masked_fill(scores < math.log(self.min_p), -math.inf)
        return scores


def uniforms(seed: int | None, batch: int, steps: int, device: torch.device) -> Tensor:
    """The numbers that decide what is sampled, float64 `[batch, steps]` in [0, 1).

    Row b depends on `seed` and b alone (and begins alike for any `steps`). Without a seed it comes from torch's own
    generator, so that `torch.manual_seed` holds. InputError for a seed that is not a whole number from 0 to 2^63 - 1.
    """
    if seed is None:
        seed = int(torch.randint(2**63 - 1, ()))
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed < 2**63:
        raise InputError(f"seed: {seed!r} given; a whole number from 0 to {2**63 - 1} is accepted")
    rows = [np.random.default_rng((seed.__index__(), b)).random(steps) for b in range(batch)]
    return torch.from_numpy(np.stack(rows)).to(device)


def log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits `[B, V]`) at tokens `[B]`: float32 `[B]`."""
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
