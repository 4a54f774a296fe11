"""Cosine distance of the last states: 1 - cos(h, h_original), h behind the final norm, mean over all tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyprune.scoring.measures.interface import StateMeasure


class Cosine(StateMeasure):
    name = "cosine"

    def distances(self, states: Tensor, original: Tensor) -> Tensor:
        """From unit vectors u, v as |u - v|^2 / 2, which keeps small distances exact."""
        tiny = torch.finfo(states.dtype).tiny
        u, v = (F.normalize(vectors, dim=-1, eps=tiny) for vectors in (states, original))
        return (u - v).square().sum(-1) / 2
