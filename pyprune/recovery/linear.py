"""ReplaceMe (arXiv 2505.02819): one hidden x hidden map at each cut, folded into the projection before it.

With M the output of the projection before the cut, Y the stream that it adds to, both the repaired model's, and t the
original's stream behind the cut, least squares gives

    T = argmin sum_tokens w |M T - (t - Y)|^2 + ridge m |T - I|^2,    W <- T'W,    b <- T'b.

With Y and M of the original, t - Y is the paper's x_post - x_pre + M. The cosine form minimises the mean of
1 - cos(M T + Y, t) instead, from the least squares on, by Adam, as it has no closed form; there every token counts
alike, and the step that errs least on the held-out windows is taken.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyprune.models.decoder import Linear
from pyprune.recovery.fitting import Fitting
from pyprune.recovery.streams import Stage, wide
from pyprune.regression.normal_equations import Fit
from pyprune.regression.output_map import folded, identity

COSINE_ROUNDS, COSINE_RATE = 10, 1e-3


def linear_at_cut(stage: Stage, fitting: Fitting) -> Fit | None:
    """Least squares."""
    if not stage.is_cut:
        return None
    fit = _map_of(stage, fitting)
    stage.projection = folded(stage.projection, fit.linear.weight)
    return fit


def cosine_at_cut(stage: Stage, fitting: Fitting) -> Fit | None:
    """The cosine form."""
    if not stage.is_cut:
        return None
    fit = _map_of(stage, fitting)
    weight, before, after = _by_cosine(stage, fitting, fit.linear.weight)
    stage.projection = folded(stage.projection, weight)
    return Fit(Linear(weight), fit.ridge, before, after)


def _map_of(stage: Stage, fitting: Fitting) -> Fit:
    """T' `[hidden, hidden]` in float64 by least squares, as a projection."""
    return fitting.fit(
        stage,
        lambda chunk: _moved(stage, chunk),
        lambda chunk: wide(stage.target[chunk]) - wide(stage.before[chunk]),
        identity(stage.before.shape[-1], stage.before.device),
    )


def _by_cosine(stage: Stage, fitting: Fitting, start: Tensor) -> tuple[Tensor, float, float]:
    """T' of the cosine form, and the mean of 1 - cos on the held-out windows by the identity and by it."""
    present = start.to(wide(stage.before[:0]).dtype).clone().requires_grad_()
    optimizer = torch.optim.Adam([present], lr=COSINE_RATE)
    untouched = torch.eye(len(start), dtype=present.dtype, device=present.device)
    first = _distance(stage, fitting, untouched)
    best, best_weight = _distance(stage, fitting, present), present.detach().clone()
    for _ in range(COSINE_ROUNDS):
        for chunk in stage.chunks:
            samples = [s for s in range(chunk.start, chunk.stop) if fitting.is_fitted(s)]
            if samples:
                optimizer.zero_grad()
                with torch.enable_grad():
                    _mean_distance(stage, samples, present).backward()
                optimizer.step()
        reached = _distance(stage, fitting, present)
        if reached < best:
            best, best_weight = reached, present.detach().clone()
    return best_weight, first, best


@torch.no_grad()
def _distance(stage: Stage, fitting: Fitting, transposed: Tensor) -> float:
    """The mean of 1 - cos on the windows that decide."""
    samples = range(len(stage.before))
    held_out = [s for s in samples if not fitting.is_fitted(s)] or list(samples)
    size = len(range(*stage.chunks[0].indices(len(samples))))
    parts = [held_out[start : start + size] for start in range(0, len(held_out), size)]
    return sum(float(_mean_distance(stage, part, transposed)) * len(part) for part in parts) / len(held_out)


def _mean_distance(stage: Stage, samples: list[int], transposed: Tensor) -> Tensor:
    before, target = wide(stage.before[samples]), wide(stage.target[samples])
    with torch.no_grad():
        moved = _moved(stage, samples)
    return (1 - F.cosine_similarity(moved @ transposed.T + before, target, dim=-1)).mean()


def _moved(stage: Stage, samples: slice | list[int]) -> Tensor:
    """M: what the projection adds to the stream `[N, T, hidden]`, not from a difference of rounded streams."""
    inputs, bias = wide(stage.inputs[samples]), stage.projection.bias
    return F.linear(inputs, stage.projection.weight.to(inputs.dtype), None if bias is None else bias.to(inputs.dtype))
