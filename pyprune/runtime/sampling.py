"""Choosing the next token from logits."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyprune.checks import is_number, require_whole
from pyprune.errors import InputError

MOST_SEED = 2**63 - 1

FILTERS = ("top_k", "top_p", "min_p")
"""What cuts the distribution that a temperature gives; a greedy choice has none."""


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
        if self.top_k is not None:
            require_whole("top_k", self.top_k, 1)
        # The bounds keep every score finite in float32.
        for name, accepted, good in (
            ("temperature", "0 (greedy), or 1e-6 to 1e6", lambda value: value == 0 or 1e-6 <= value <= 1e6),
            ("top_p", "more than 0 and at most 1", lambda value: 0 < value <= 1),
            ("min_p", "0 to 1", lambda value: 0 <= value <= 1),
            ("repetition_penalty", "0.001 to 1000", lambda value: 1e-3 <= value <= 1e3),
        ):
            value, optional = getattr(self, name), name in ("top_p", "min_p")
            if not (optional and value is None) and not (is_number(value) and good(value)):
                raise InputError(f"{name}: {value!r} given; {accepted} is accepted")
        if self.temperature == 0 and (unused := [name for name in FILTERS if getattr(self, name) is not None]):
            warnings.warn(f"temperature 0 takes the likeliest token: no effect of {', '.join(unused)}", stacklevel=4)

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
        seed = int(torch.randint(MOST_SEED, ()))
    seed = require_whole("seed", seed, 0, MOST_SEED)
    rows = [np.random.default_rng((seed, b)).random(steps) for b in range(batch)]
    return torch.from_numpy(np.stack(rows)).to(device)


def log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits `[B, V]`) at tokens `[B]`: float32 `[B]`."""
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
