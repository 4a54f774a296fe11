"""Taylor importance: what zeroing each weight does to the loss, to first order (Shortened LLaMA, section 3.1, Taylor).

    I = sum_k sum_i sum_j |W_ij * dL/dW_ij|

over the unit's projections and RMSNorm weights W^k, L the mean negative log-likelihood over the calibration set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.models.decoder import Decoder
from pyprune.runtime.differentiable import BlockGradients
from pyprune.scoring.aggregation import is_weight, neuron_sums, unit_values, weights_of
from pyprune.scoring.gradients import Batch, batches, per_block, predicted_positions
from pyprune.scoring.measured import Measured, Progress, Steps, Unit
from pyprune.scoring.removals import RANKED

SALIENCES = ("first", "per-sample", "vectorized", "second", "mixed")


@torch.inference_mode(False)
def taylor(
    decoder: Decoder,
    input_ids: Tensor,
    mask: Tensor | None,
    unit: str,
    *,
    salience: str = "first",
    within: str = "sum",
    across: str = "sum",
    variant: str = "corrected",
    batch: int = 10,
    progress: Progress | None = None,
) -> Measured:
    """Taylor importance of each unit from one backward pass over `input_ids [S, T]`.

    salience of an output neuron i, g the gradient of the set's loss and g_s that of sample s, N samples:
    "first" sum_j |W_ij g_ij|, the paper's; "per-sample" sum_s sum_j |W_ij g_s,ij| with the g_s adding up to g;
    "vectorized" |sum_j W_ij g_ij|; "second" sum_j W_ij^2 sum_s g_s,ij^2 / N; "mixed"
    sum_j |W_ij g_ij - W_ij^2 sum_s g_s,ij^2 / 2N|, in the last two with g_s of the sample's own mean loss (LLM-Pruner's
    param_first, vectorize, param_second and param_mix). within, across: how neurons make a matrix and matrices a unit.

    variant "faithful", as the paper's code: g is the sum of the gradients of the mean losses of batches of `batch`
    samples, so that a token of a shorter last batch, or of a batch with more padding, counts more.
    """
    counts = predicted_positions(input_ids, mask)
    total, samples = int(counts.sum()), int((counts > 0).sum())
    one_by_one = 1 if salience in ("per-sample", "second", "mixed") else None
    if variant == "faithful":
        given = batches(input_ids, mask, batch, lambda positions: 1 / positions)
    else:
        given = batches(input_ids, mask, len(input_ids), lambda positions: 1 / total, one_by_one)
    halves = {"mha", "ffn"} if unit == "block" else set(RANKED[unit])

    def wanted(name: str) -> bool:
        return is_weight(name) and name.partition(".")[0] in halves

    steps = Steps(progress, len(decoder.blocks))
    values: dict[Unit, float] = {}
    for turn in per_block(decoder, given, wanted):
        sums = _Sums(total, samples, salience)
        for found, one in zip(turn, given, strict=True):
            sums.add(found, one)
        block = found.block
        neurons = {name: sums.neurons(name, tensor) for name, tensor in weights_of(block) if wanted(name)}
        values.update(unit_values(neurons, block, unit, within, across))
        steps.advance()
    return Measured(values)


class _Sums:
    """What one block's neurons need of all samples, added up batch by batch: under each weight's name the gradient of
    the set's loss, the squares of the samples' own, or the neurons' scores themselves."""

    def __init__(self, total: int, samples: int, salience: str) -> None:
        self._total, self._samples, self._salience = total, samples, salience
        self._gradients: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self._neurons: dict[str, Tensor] = {}

    def add(self, found: BlockGradients, batch: Batch) -> None:
        weights = dict(found.block.tensors())
        for name, gradient in found.weights.items():
            if self._salience == "per-sample":
                scores = neuron_sums(lambda w, g: (w * g).abs(), weights[name], gradient)
                _add(self._neurons, name, scores)
                continue
            if self._salience in ("second", "mixed"):
                own = gradient * (self._total / batch.positions)  # the sample's mean loss instead of its share
                _add(self._squares, name, own.square_())
            _add(self._gradients, name, gradient)

    def neurons(self, name: str, weight: Tensor) -> Tensor:
        """The scores of a weight's output neurons, float64 `[out]`."""
        if self._salience == "per-sample":
            return self._neurons[name]
        gradient = self._gradients[name]
        if self._salience == "first":
            return neuron_sums(lambda w, g: (w * g).abs(), weight, gradient)
        if self._salience == "vectorized":
            return neuron_sums(lambda w, g: w * g, weight, gradient).abs()
        squares, count = self._squares[name], self._samples
        if self._salience == "second":
            return neuron_sums(lambda w, f: w.square() * f / count, weight, squares)
        return neuron_sums(lambda w, g, f: (w * g - w.square() * f / (2 * count)).abs(), weight, gradient, squares)


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    if name in sums:
        sums[name] += value
    else:
        sums[name] = value
