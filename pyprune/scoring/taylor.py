"""Taylor importance: what zeroing each weight does to the loss, to first order (Shortened LLaMA, section 3.1, Taylor).

    I = sum_k sum_i sum_j |W_ij * dL/dW_ij|

over the unit's projections and RMSNorm weights W^k, L the mean negative log-likelihood over the calibration set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.models.load_any import AnyDecoder
from pyprune.progress import Progress
from pyprune.runtime.differentiable import BlockGradients
from pyprune.scoring.aggregation import is_weight, neuron_sums, unit_values, weights_of
from pyprune.scoring.gradients import Batch, make_batches, per_block, predicted_positions
from pyprune.scoring.measurement import Measurement, Unit
from pyprune.scoring.progress import StepProgress
from pyprune.scoring.removals import UNIT_KINDS

SALIENCES = ("first", "per-sample", "vectorized", "second", "mixed")


@torch.inference_mode(False)
def taylor(
    decoder: AnyDecoder,
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
) -> Measurement:
    """Taylor importance of each unit from one backward pass over `input_ids [S, T]`.

    salience of an output neuron i, g the gradient of the set's loss and g_s that of sample s, N samples:
    "first" sum_j |W_ij g_ij|, the paper's; "per-sample" sum_s sum_j |W_ij g_s,ij| with the g_s adding up to g;
    "vectorized" |sum_j W_ij g_ij|; "second" sum_j W_ij^2 sum_s g_s,ij^2 / N; "mixed"
    sum_j |W_ij g_ij - W_ij^2 sum_s g_s,ij^2 / 2N|, in the last two with g_s of the sample's own mean loss (LLM-Pruner's
    param_first, vectorize, param_second and param_mix). within, across: how neurons make a matrix and matrices a unit.

    variant "faithful", as the paper's code: g is the sum of the gradients of the mean losses of batches of `batch`
    samples, so that a token of a shorter last batch, or of a batch with more padding, counts more.
    """
    sample_positions = predicted_positions(input_ids, mask)
    positions, samples = int(sample_positions.sum()), int((sample_positions > 0).sum())
    if variant == "faithful":
        batches = make_batches(input_ids, mask, batch, lambda positions: 1 / positions)
    else:
        batch_limit = 1 if salience in ("per-sample", "second", "mixed") else None
        batches = make_batches(input_ids, mask, len(input_ids), lambda _: 1 / positions, batch_limit)

    def is_scored(name: str) -> bool:
        return is_weight(name) and (unit == "block" or name.partition(".")[0] in UNIT_KINDS[unit])

    steps = StepProgress(progress, len(decoder.blocks))
    values: dict[Unit, float] = {}
    for block_gradients in per_block(decoder, batches, is_scored):
        sums = _BlockSums(positions, samples, salience)
        for gradients, part in zip(block_gradients, batches, strict=True):
            sums.add(gradients, part)
        block = gradients.block
        neurons = {name: sums.neurons(name, tensor) for name, tensor in weights_of(block) if is_scored(name)}
        values.update(unit_values(neurons, block, unit, within, across))
        steps.advance()
    return Measurement(values)


class _BlockSums:
    """What the scores of one block's neurons need of all samples, added up batch by batch: under each weight's name the
    gradient of the set's loss, the squares of the samples' gradients, or the neurons' scores themselves."""

    def __init__(self, positions: int, samples: int, salience: str) -> None:
        self._positions, self._samples, self._salience = positions, samples, salience
        self._gradients: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self._neurons: dict[str, Tensor] = {}

    def add(self, gradients: BlockGradients, batch: Batch) -> None:
        """Add the gradients of one batch."""
        weights = dict(gradients.block.tensors())
        for name, gradient in gradients.weights.items():
            if self._salience == "per-sample":
                scores = neuron_sums(lambda w, g: (w * g).abs(), weights[name], gradient)
                _add(self._neurons, name, scores)
                continue
            if self._salience in ("second", "mixed"):
                # of the sample's own mean loss instead of its share of the set's
                sample_gradient = gradient * (self._positions / batch.positions)
                _add(self._squares, name, sample_gradient.square_())
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
