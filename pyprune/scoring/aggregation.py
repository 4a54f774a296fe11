"""From weights to a unit: scores of output neurons, then of their matrices, then of the unit.

The paper scores weights at the level of output neurons and found sums at both levels above it to work best among sum,
mean, product and maximum (Shortened LLaMA, section 3.1 and its second footnote).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pyprune.models.decoder import Block
from pyprune.models.transformers_decoder import LayerBlock
from pyprune.scoring.measurement import Unit
from pyprune.scoring.removals import UNIT_KINDS

REDUCTIONS = ("sum", "mean", "max", "prod")

CHUNK_FLOATS = 1 << 22
"""Weights that are widened to float64 together: 32 MiB."""


def weights_of(block: Block | LayerBlock) -> Iterator[tuple[str, Tensor]]:
    """The weight matrices and RMSNorm vectors of a block under the names of `Block.tensors()`: all but its biases."""
    return ((name, tensor) for name, tensor in block.tensors() if is_weight(name))


def is_weight(name: str) -> bool:
    """Whether a tensor of that name is a weight matrix or an RMSNorm vector, and not a bias."""
    return not name.endswith("bias")


def neuron_sums(element: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """sum_j element(...)_ij in float64, `[out]`, for tensors `[out, in]` of one shape; each entry of a vector (an
    RMSNorm's weight) is a neuron of its own. Some rows at a time are widened to float64."""
    matrices = [tensor.detach().reshape(len(tensor), -1) for tensor in tensors]
    rows = max(1, CHUNK_FLOATS // matrices[0].shape[1])
    chunks = zip(*(matrix.split(rows) for matrix in matrices), strict=True)
    return torch.cat([element(*(rows.double() for rows in chunk)).sum(1) for chunk in chunks])


def unit_values(
    neurons: dict[str, Tensor], block: Block | LayerBlock, unit: str, within: str, across: str
) -> Iterator[tuple[Unit, float]]:
    """The units of `unit`'s ranking in this block with their values, from the neurons' scores of its weights."""
    for kind in UNIT_KINDS[unit]:
        if kind == "block" or getattr(block, kind) is not None:
            scores = [s for name, s in neurons.items() if kind in ("block", name.partition(".")[0])]
            yield (kind, block.index), aggregate(scores, within, across)


def aggregate(matrix_scores: list[Tensor], within: str, across: str) -> float:
    """across_k within_i s_ki of non-negative neuron scores s_k `[out]`, one vector a matrix.

    With a product anywhere it is the logarithm of that: a product of thousands of scores is below any float.
    """
    if "prod" in (within, across):
        logs = torch.stack([_LOG_REDUCTIONS[within](scores.log()) for scores in matrix_scores])
        return float(_LOG_REDUCTIONS[across](logs))
    return float(_REDUCTIONS[across](torch.stack([_REDUCTIONS[within](scores) for scores in matrix_scores])))


_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"sum": torch.sum, "mean": torch.mean, "max": torch.max}
_LOG_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda logs: logs.logsumexp(0),
    "mean": lambda logs: logs.logsumexp(0) - math.log(len(logs)),
    "max": torch.max,
    "prod": torch.sum,
}
