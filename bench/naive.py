"""The loops that published code runs, with transformers' modules: one forward pass a candidate, nothing shared."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.inference_mode()
def naive_scores(model: Any, ids: Tensor, batch: int | None = None) -> list[float]:
    """Perplexity of the whole model, then without each block in turn, on `batch` samples at a time (all when None; the
    paper's code takes one)."""
    blocks = range(len(model.model.layers))
    return [naive_perplexity(model, ids, gone, batch) for gone in ((), *((place,) for place in blocks))]


@torch.inference_mode()
def naive_greedy(model: Any, ids: Tensor, count: int) -> tuple[list[int], list[float]]:
    """The blocks that go one after the other, each the one whose removal costs least then, and the perplexities."""
    order: list[int] = []
    scores: list[float] = []
    for _ in range(count):
        left = [place for place in range(len(model.model.layers)) if place not in order]
        values = {place: naive_perplexity(model, ids, (*order, place)) for place in left}
        order.append(min(values, key=values.__getitem__))
        scores.append(values[order[-1]])
    return order, scores


def naive_perplexity(model: Any, ids: Tensor, gone: Iterable[int], batch: int | None = None) -> float:
    """Perplexity of the model without these blocks; the weights are not copied."""
    layers, gone, loss = model.model.layers, set(gone), 0.0
    try:
        model.model.layers = nn.ModuleList(layer for place, layer in enumerate(layers) if place not in gone)
        for part in ids.split(batch or len(ids)):
            logits = model(part, use_cache=False).logits[:, :-1].float()
            loss += float(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    finally:
        model.model.layers = layers
    return math.exp(loss / (ids.shape[0] * (ids.shape[1] - 1)))
