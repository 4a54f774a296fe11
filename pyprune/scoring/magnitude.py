"""Importance from the weights alone: magnitude (Shortened LLaMA, section 3.1, Mag) and the norms of the matrices."""

from __future__ import annotations

from torch import Tensor

from pyprune.models.load_any import AnyDecoder
from pyprune.progress import Progress
from pyprune.scoring.aggregation import neuron_sums, unit_values, weights_of
from pyprune.scoring.measurement import Measurement, Unit
from pyprune.scoring.progress import StepProgress


def magnitude(
    decoder: AnyDecoder,
    input_ids: Tensor | None,
    mask: Tensor | None,
    unit: str,
    *,
    power: int = 1,
    within: str = "sum",
    across: str = "sum",
    progress: Progress | None = None,
) -> Measurement:
    """sum_k sum_i sum_j |W_ij|^p over the unit's projections and RMSNorm weights W^k, p = `power`.

    within, across: how the output neurons' sums over j become a matrix's score, and the matrices' the unit's.
    """
    steps = StepProgress(progress, len(decoder.blocks))
    values: dict[Unit, float] = {}
    for block in decoder.blocks:
        neurons = {name: neuron_sums(lambda w: w.abs().pow(power), tensor) for name, tensor in weights_of(block)}
        values.update(unit_values(neurons, block, unit, within, across))
        steps.advance()
    return Measurement(values)


def weight_norm(
    decoder: AnyDecoder,
    input_ids: Tensor | None,
    mask: Tensor | None,
    unit: str,
    *,
    norm: str = "frobenius",
    progress: Progress | None = None,
) -> Measurement:
    """The norms of the unit's projection matrices, RMSNorm weights aside.

    "frobenius": sum_k ||W^k||_F. "rms": the mean over k of ||W^k||_F / sqrt(entries), which compares units of different
    sizes: MHA with FFN sublayers, narrowed blocks with full ones.
    """
    across = "sum" if norm == "frobenius" else "mean"
    steps = StepProgress(progress, len(decoder.blocks))
    values: dict[Unit, float] = {}
    for block in decoder.blocks:
        norms = {}
        for name, tensor in weights_of(block):
            if tensor.dim() == 2:
                squares = neuron_sums(lambda w: w.square(), tensor).sum()
                norms[name] = (squares if norm == "frobenius" else squares / tensor.numel()).sqrt().reshape(1)
        values.update(unit_values(norms, block, unit, "sum", across))
        steps.advance()
    return Measurement(values)
