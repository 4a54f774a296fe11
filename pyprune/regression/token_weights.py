"""How much each token counts in a fit.

The sublayer behind a fit sees RMSNorm of the stream, so an error counts relative to the token's norm: `relative`
weighs a token by hidden / |target|^2. That also keeps massive activations (first tokens of norms a hundred times the
others') from owning the least squares, without losing sight of them. `equal` weighs all alike. `first`: the weight of
each sample's first token is multiplied by this; 0 leaves it out.
"""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHTINGS = ("relative", "equal")


def token_weights(target: Tensor, weighting: str, first: float, mask: Tensor | None = None) -> Tensor:
    """Weights `[N, T]` of tokens whose stream is to become `target [N, T, hidden]`; 0 where `mask` is False."""
    if weighting == "equal":
        weights = target.new_ones(target.shape[:2])
    else:
        square = target.square().mean(-1)
        weights = torch.where(square > 0, 1 / square.clamp(min=torch.finfo(square.dtype).tiny), 0)
    if first != 1:
        weights[:, 0] *= first
    return weights if mask is None else weights * mask.to(weights)
