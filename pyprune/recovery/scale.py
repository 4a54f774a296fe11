"""Prune&Comp (arXiv 2507.18212): the stream behind each cut is brought to the original's magnitude.

    alpha = mean_t |x_post| / mean_t |x_pre|

with x_post the original's stream behind what was removed and x_pre the pruned model's, which at the first cut is the
original's too. RMSNorm does not see the factor, so scaling the stream is the same as dividing all that is added to it
later: every o and down behind the cut (and its bias) is divided by alpha. x_pre is the stream that was left unscaled,
so the last cut's alpha holds those before it. The embedding, and a head tied to it, stay; the final norm takes the
factor away but for eps.

One scalar a cut, folded into the weights, is the paper's. The rest differs from its published code. |x| is a token's
L2 norm; the code takes each channel's mean absolute value, a ratio for each channel and sample, and the mean of these.
Later matrices are divided, because a tied head must stay; the code multiplies the embedding and the earlier ones, the
same function but for the norms' eps. x_post is the original's at every cut, all measured in one pass; the code removes
a block and folds its scalar in rounds, so that both streams are of the model that the rounds before left, and decides
in them which blocks go.
"""

from __future__ import annotations

import torch

from pyprune.models.decoder import Linear
from pyprune.recovery.fitting import Fitting
from pyprune.recovery.streams import Stage


def magnitude_ratio(stage: Stage, fitting: Fitting) -> float | None:
    """alpha of a cut; None where there is none. The streams must be the unrepaired model's up to the factors so far."""
    if not stage.is_cut:
        return None
    norms = torch.zeros(2, dtype=torch.float64, device=stage.before.device)
    for chunk in stage.chunks:
        fitted = fitting.fitted(chunk, norms.device)
        norms[0] += stage.target[chunk].double().norm(dim=-1)[fitted].sum()
        norms[1] += stage.outputs(chunk).double().norm(dim=-1)[fitted].sum()
    fitting.group.all_reduce(norms)
    return float(norms[0] / norms[1]) if norms[1] > 0 else 1.0


def divided(linear: Linear, alpha: float) -> Linear:
    """The projection with weight and bias divided by alpha, rounded once."""
    weight = (linear.weight.double() / alpha).to(linear.weight.dtype)
    return Linear(weight, None if linear.bias is None else (linear.bias.double() / alpha).to(linear.bias.dtype))
