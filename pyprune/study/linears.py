"""The linears of a width-pruned block as they are timed: torch's, torch's on a padded weight, and pyprune's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pyprune.pruning.apply import padded_width
from pyprune.runtime.memory import require
from pyprune.runtime.padded_linear import linear
from pyprune.strides import ROW_BYTES
from pyprune.study.device import synchroniser
from pyprune.study.measure import interleave

ROLES = ("gate/up", "down")
"""A neuron is a row of gate and of up, hidden -> width, and a column of down, width -> hidden."""

TORCH, PADDED, OURS = "torch", "torch padded", "pyprune"
SIDES = (TORCH, PADDED, OURS)

TABLE_1 = {
    4096: {
        8807: "Wanda-sp 20 %", 7816: "Wanda-sp 27 %", 7156: "Wanda-sp 35 %", 8577: "FLAP 20 %", 7497: "FLAP 27 %",
        6781: "FLAP 35 %", 8256: "LLM-Pruner 20 %", 7155: "LLM-Pruner 27 %", 6054: "LLM-Pruner 35 %",
    },
    5120: {
        11060: "Wanda-sp 21 %", 9954: "Wanda-sp 29 %", 8710: "Wanda-sp 37 %", 10368: "LLM-Pruner 21 %",
        8985: "LLM-Pruner 29 %", 7603: "LLM-Pruner 37 %",
    },
}  # fmt: skip
"""FFN widths of the paper's Table 1 by hidden size: LLaMA-7B and Vicuna-13B (FLAP's are means, rounded down)."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
POOL_BYTES = 256 << 20
MOST_SLOTS = 16


def shape_of(role: str, width: int, hidden: int) -> tuple[int, int]:
    """(out, in) of the weight."""
    return (width, hidden) if role == "gate/up" else (hidden, width)


class Pool:
    """Random values that all weights of a study are views of.

    So no width costs the time to draw one, and all sides read the same pages. Calls walk through it, and it is many
    times the last level of a CPU's cache, as the weights of a model are: each call reads its weight from memory.
    """

    def __init__(self, hidden: int, widest: int, dtype: torch.dtype, device: torch.device) -> None:
        line = ROW_BYTES // dtype.itemsize
        largest = (hidden + line) * (widest + line)
        self.size = max(POOL_BYTES // dtype.itemsize, 2 * largest)
        require(self.size * dtype.itemsize, device, f"weights of {hidden} x {widest}")
        self.device, self.dtype, self._line, self._next = device, dtype, line, 0
        drawn = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        self.values = drawn.repeat(-(-self.size // len(drawn)))[: self.size]

    def weights(self, out: int, inner: int, stride: int) -> itertools.cycle[Tensor]:
        """Matrices [out, inner] on cache lines, rows `stride` values apart, one after the other in memory."""
        needed = -(-out * stride // self._line) * self._line
        matrices = []
        for _ in range(max(1, min(MOST_SLOTS, self.size // needed))):
            if self._next + needed > self.size:
                self._next = 0
            matrices.append(self.values.as_strided((out, inner), (stride, 1), self._next))
            self._next += needed
        return itertools.cycle(matrices)

    def activations(self, rows: int, inner: int) -> Tensor:
        return torch.randn(rows, inner, generator=torch.Generator().manual_seed(1)).to(self.device, self.dtype)


def torch_linear(pool: Pool, role: str, width: int, hidden: int, rows: int) -> Callable[[], Tensor]:
    """A call of torch's linear on a weight of this width as a checkpoint has it."""
    out, inner = shape_of(role, width, hidden)
    weights, x = pool.weights(out, inner, inner), pool.activations(rows, inner)
    return lambda: F.linear(x, next(weights))


def our_linear(pool: Pool, role: str, width: int, hidden: int, rows: int) -> Callable[[], Tensor]:
    """A call of what PaddedLinear runs, on a weight as it keeps it."""
    out, inner = shape_of(role, width, hidden)
    line = ROW_BYTES // pool.dtype.itemsize
    weights, x = pool.weights(out, inner, padded_width(inner, line)), pool.activations(rows, inner)
    return lambda: linear(x, next(weights))


def time_calls(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of each call in each of `rounds` interleaved rounds, after one that does not count.

    On a CPU by its clock; on a GPU between two events of the device, its L2 cache flushed before. The latter has never
    run on hardware.
    """
    with torch.inference_mode():
        if device.type == "cuda":
            from pyprune.triton_kernels import timing

            return timing.interleaved(calls, device, rounds)
        return interleave(calls, rounds, warmups=1, synchronise=synchroniser(device))


def weight_bytes(width: int, hidden: int, rows: int, dtype: torch.dtype) -> int:
    """Bytes that one product must move: the weight, the activations and the result, without padding."""
    return (width * hidden + rows * (width + hidden)) * dtype.itemsize


def flops(width: int, hidden: int, rows: int) -> int:
    """Multiplications and additions of one product, without padding."""
    return 2 * rows * width * hidden
