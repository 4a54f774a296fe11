"""Choosing the next token from logits, as `SamplingParams` say."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pyprune.runtime.sampling_params import MAX_SEED, SamplingParams


def choose(logits: Tensor, params: SamplingParams, uniform: Tensor | None, held: Tensor | None = None) -> Tensor:
    """One token id `[B]` for each row of `logits [B, V]`.

    uniform: numbers in [0, 1), float64 `[B]`, that decide (greedy takes none). held: bool `[B, V]`, the tokens that
    each sequence holds.
    """
    scores = penalized(logits, held, params.repetition_penalty)
    if params.temperature == 0:
        return scores.argmax(dim=-1)
    if uniform is None:
        raise ValueError("uniform: None given; sampling takes a number in [0, 1) for each row")
    # The inverse of the distribution function, summed in float64 so that unlikely tokens keep their share.
    cumulative = filtered(scores, params).softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    point = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    if logits.device.type == "cpu" and not bool(total.isfinite().all()):  # on a GPU looking would mean waiting
        raise RuntimeError("the model's logits are not finite: nothing can be sampled from them")
    return torch.searchsorted(cumulative, point, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def penalized(logits: Tensor, held: Tensor | None, penalty: float) -> Tensor:
    """Logits `[B, V]` after the repetition penalty on the tokens that are `held`."""
    if held is None or penalty == 1:
        return logits
    lowered = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(held, lowered, logits)


def filtered(logits: Tensor, params: SamplingParams) -> Tensor:
    """Logits / temperature less their greatest, `[B, V]`; -inf where top_k, top_p or min_p cut a token off."""
    logits = logits.float()
    scores = (logits - logits.amax(dim=-1, keepdim=True)) / params.temperature  # the best is 0: nothing overflows
    if params.top_k is not None and params.top_k < scores.shape[-1]:
        best = scores.topk(params.top_k, dim=-1)
        scores = torch.full_like(scores, -math.inf).scatter(-1, best.indices, best.values)
    if params.top_p is not None and params.top_p < 1:
        ordered, order = scores.sort(dim=-1, descending=True)
        probability = ordered.softmax(dim=-1)
        better = probability.cumsum(dim=-1) - probability  # of all better tokens: the best one always stays
        ordered = ordered.masked_fill(better >= params.top_p, -math.inf)
        scores = torch.full_like(scores, -math.inf).scatter(-1, order, ordered)
    if params.min_p:
        scores = scores.masked_fill(scores < math.log(params.min_p), -math.inf)
    return scores


def uniforms(seed: int | None, batch: int, steps: int, device: torch.device) -> Tensor:
    """The numbers that decide what is sampled, float64 `[batch, steps]` in [0, 1).

    Row b depends on `seed` and b alone (and begins alike for any `steps`). Without a seed it comes from torch's own
    generator, so that `torch.manual_seed` holds.
    """
    if seed is None:
        seed = int(torch.randint(MAX_SEED, ()))
    rows = [np.random.default_rng((seed, b)).random(steps) for b in range(batch)]
    return torch.from_numpy(np.stack(rows)).to(device)


def log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits `[B, V]`) at tokens `[B]`: float32 `[B]`."""
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
