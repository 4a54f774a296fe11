"""One hidden x hidden map of what a projection writes to the stream, and its folding into that projection.

With M the projection's output, Y the stream that it adds to and t what the stream should become (ReplaceMe, arXiv
2505.02819),

    T = argmin sum_tokens w |M T - (t - Y)|^2 + ridge m |T - I|^2,    W <- T'W,    b <- T'b.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.models.blocks import Linear


def identity(hidden: int, device: torch.device) -> Linear:
    """The map that changes nothing, as a projection in float64: what a fit starts from and a ridge holds on to."""
    return Linear(torch.eye(hidden, dtype=torch.float64, device=device))


def folded(linear: Linear, transposed: Tensor) -> Linear:
    """The projection followed by the map, T' W and T' b in float64, rounded once. transposed: T' `[hidden, hidden]`."""
    wide = transposed.double()
    weight = (wide @ linear.weight.double()).to(linear.weight.dtype)
    return Linear(weight, None if linear.bias is None else (wide @ linear.bias.double()).to(linear.bias.dtype))
