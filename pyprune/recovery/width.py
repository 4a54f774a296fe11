"""Repairs of width alone, from what the original's projections get as inputs.

With x the input of an output projection W in the original, R its channels that went and K those that stay:

- `flap-bias` (FLAP, An et al. 2024): b = W_R mean_t(x_R), added to the original's bias.
- `stat` (STAT, arXiv 2406.00061): x_R is predicted from x_K by T, and W_R T folded into W_K,
  W_K <- argmin sum_t w |W_K x_K + c - W x|^2 + ridge m |W_K - W_K,old|^2, which without a ridge and without c is
  W_K + W_R T with T the least squares from x_K to x_R (the paper's pivoted QR also chooses K; here the pruning has
  chosen).

c is the compensation that the pruned model's bias holds already, as `prune --method flap` leaves it: what the pruning
added is not added again.

Both look at every projection by itself; `refit-all-o` looks at the repaired model's inputs and at the stream.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.models.blocks import Linear
from pyprune.recovery.fitting import Fitting
from pyprune.recovery.streams import Stage, output_projection, wide
from pyprune.regression.normal_equations import Fit


def flap_bias(stage: Stage, fitting: Fitting) -> Tensor | None:
    """What the bias lacks of b, float64 `[hidden]`; None where no channel went."""
    if stage.channels is None or stage.original_inputs is None:
        return None
    weight = output_projection(stage.original).weight
    total = torch.zeros(weight.shape[1], dtype=torch.float64, device=stage.before.device)
    count = torch.zeros((), dtype=torch.float64, device=stage.before.device)
    for chunk in stage.chunks:
        inputs = stage.original_inputs[chunk][fitting.fitted(chunk, total.device)]
        total += inputs.double().sum((0, 1))
        count += inputs.shape[0] * inputs.shape[1]
    fitting.group.all_reduce(total, count)
    removed = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    removed[stage.channels] = False
    return weight[:, removed].double() @ (total / count)[removed] - compensation(stage)


def compensation(stage: Stage) -> Tensor:
    """c, float64 `[hidden]`: the projection's bias less the original's."""
    present, before = stage.projection.bias, output_projection(stage.original).bias
    none = torch.zeros(stage.before.shape[-1], dtype=torch.float64, device=stage.before.device)
    return (none if present is None else present.double()) - (none if before is None else before.double())


def stat(stage: Stage, fitting: Fitting) -> Fit | None:
    """The narrowed projection with what went folded in; its bias stays."""
    original_inputs = stage.original_inputs
    if stage.channels is None or original_inputs is None:
        return None
    channels, full = stage.channels, output_projection(stage.original).weight
    present = compensation(stage)
    padding = stage.projection.weight.shape[1] - len(channels)

    def stayed(chunk: slice) -> Tensor:
        inputs = original_inputs[chunk][..., channels]
        return torch.nn.functional.pad(inputs, (0, padding)) if padding else inputs

    fit = fitting.fit(
        stage,
        stayed,
        lambda chunk: (wide(original_inputs[chunk]) @ wide(full).T).sub_(present),
        Linear(stage.projection.weight),
    )
    stage.projection = Linear(fit.linear.weight, stage.projection.bias)
    return fit
