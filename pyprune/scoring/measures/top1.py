"""Top-1 disagreement: the share of tokens behind which the most probable next token is not the original's.

1 less the agreement, so that the lowest is the closest, as of every measure.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.scoring.measures.interface import Comparison, LogitsMeasure


class Top1(LogitsMeasure):
    name = "top1"

    def comparison(self, shape: torch.Size, device: torch.device) -> Comparison:
        return _Disagreement(shape, device)


class _Disagreement:
    """The largest logit so far and its id, of both; of equal ones the first."""

    def __init__(self, shape: torch.Size, device: torch.device) -> None:
        self._best = [
            (torch.full(shape, -torch.inf, device=device), torch.zeros(shape, dtype=torch.int64, device=device))
            for _ in range(2)
        ]

    def add(self, logits: Tensor, original: Tensor, first: int) -> None:
        for place, tile in enumerate((logits, original)):
            value, token = self._best[place]
            tile_value, tile_token = tile.max(-1)
            larger = tile_value > value
            self._best[place] = (
                torch.where(larger, tile_value, value),
                torch.where(larger, tile_token + first, token),
            )

    def result(self) -> Tensor:
        return (self._best[0][1] != self._best[1][1]).double()
