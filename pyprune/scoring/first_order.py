"""Perplexity without each unit, predicted from one backward pass.

A unit adds its update u = f(x) to the residual stream. Removing it changes the stream behind it from x_out to
x_out - u, so to first order the summed loss L by

    delta L = -<dL/dx_out, u> = -sum_t a_t,   a_t = <dL/dx_t, u_t> at token t.

Updates are far from small, and the terms of many tokens cancel. The second order, with the empirical Fisher information
in the Hessian's place and tokens taken one by one, keeps them apart at no cost:

    delta L = sum_t (-a_t + a_t^2 / 2).

One forward and one backward pass (plus the forward pass that checkpointing repeats) give all units at once, where exact
perplexities need one forward pass each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import ops
from pyprune.models.load_any import AnyDecoder
from pyprune.models.transformers_decoder import TransformersDecoder
from pyprune.ops import reference
from pyprune.progress import Progress
from pyprune.runtime.differentiable import BlockGradients
from pyprune.scoring.gradients import Batch, make_batches, per_block, predicted_positions
from pyprune.scoring.layered_transformers import last_losses
from pyprune.scoring.losses import exp_mean, targets_of
from pyprune.scoring.measurement import Measurement, Unit
from pyprune.scoring.progress import StepProgress
from pyprune.scoring.removals import UNIT_KINDS


@torch.inference_mode(False)
def predicted_perplexities(
    order: int,
    decoder: AnyDecoder,
    input_ids: Tensor,
    mask: Tensor | None,
    unit: str,
    *,
    report: str = "ppl",
    progress: Progress | None = None,
) -> Measurement:
    """The perplexity without each unit as predicted to first or second `order`, or with report "loss" the change of the
    mean loss in nats. The baseline is the exact perplexity of the unpruned model, or 0."""
    positions = int(predicted_positions(input_ids, mask).sum())
    batches = make_batches(input_ids, mask, len(input_ids), lambda positions: 1.0)
    steps = StepProgress(progress, len(decoder.blocks))
    changes: dict[Unit, float] = {}
    loss = 0.0
    for blocks_done, block_gradients in enumerate(per_block(decoder, batches, lambda name: False)):
        for gradients, batch in zip(block_gradients, batches, strict=True):
            if blocks_done == 0:  # the last block: the states behind it go into the head
                loss += _summed_loss(decoder, gradients.states[2], batch)
            for kind in UNIT_KINDS[unit]:
                if kind == "block" or getattr(gradients.block, kind) is not None:
                    slopes = token_slopes(gradients, kind)
                    change = -slopes if order == 1 else slopes.square() / 2 - slopes
                    candidate = kind, gradients.block.index
                    changes[candidate] = changes.get(candidate, 0.0) + float(change.sum()) / positions
        steps.advance()
    if report == "loss":
        return Measurement(changes, 0.0)
    perplexities = {candidate: exp_mean(loss / positions + change, 1) for candidate, change in changes.items()}
    return Measurement(perplexities, exp_mean(loss, positions))


def token_slopes(gradients: BlockGradients, kind: str) -> Tensor:
    """a_t = <dL/dx_out, x_out - x_in> of each token, float64 `[N, T]`; x_in and x_out before and behind the "block",
    its "mha" or its "ffn"."""
    before, behind = {"block": (0, 2), "mha": (0, 1), "ffn": (1, 2)}[kind]
    update = gradients.states[behind].double() - gradients.states[before].double()
    return (gradients.slopes[behind].double() * update).sum(-1)


def _summed_loss(decoder: AnyDecoder, x: Tensor, batch: Batch) -> float:
    """Summed negative log-likelihood of a batch with final states x `[N, T, hidden]`."""
    targets = targets_of(batch.input_ids, batch.mask).to(x.device).contiguous()
    if isinstance(decoder, TransformersDecoder):
        with torch.no_grad():
            return float(last_losses(decoder.structure, x[:, :-1], targets).double().sum())
    # The kernels know no float64, which only float64 weights lead to.
    cross_entropy = reference.linear_cross_entropy if x.dtype == torch.float64 else ops.linear_cross_entropy
    with torch.no_grad():
        losses = cross_entropy(
            x[:, :-1].contiguous(), decoder.head.weight, targets, decoder.norm, decoder.eps, decoder.head.bias
        )
    return float(losses.double().sum())
