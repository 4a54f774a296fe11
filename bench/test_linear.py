"""One bf16 linear of 8192 x 4096 at few rows, against torch's; and against the read limit of the same run."""

from __future__ import annotations

from statistics import median

import pytest
import torch
import torch.nn.functional as F

from bench.rounds import Side
from bench.tables import FASTER, interval_text
from pyprune import ops

OUT, IN = 8192, 4096


@pytest.fixture(scope="module")
def weights() -> list[torch.Tensor]:
    """Several matrices, used in turn, so that none is still in a cache: 4 x 67 MB."""
    return [torch.randn(OUT, IN).to(torch.bfloat16) for _ in range(4)]


@pytest.mark.parametrize("rows", [1, 4, 8, 16, 64, 1024])
def test_bf16_linear_against_torch(interleaved, benchmark, table, weights, memory, rows: int):
    x, turn = torch.randn(rows, IN), [0]
    low = x.to(torch.bfloat16)

    def ours() -> None:
        turn[0] += 1
        ops.padded_linear(x, weights[turn[0] % 4])

    def theirs() -> None:
        turn[0] += 1
        F.linear(low, weights[turn[0] % 4])

    sides = {"pyprune": Side(ours), "torch": Side(theirs), "memory read": Side(memory.quickest())}
    seconds = interleaved(sides, 20 if rows <= 64 else 6)
    read = memory.size / median(seconds["memory read"])
    share = OUT * IN * 2 / median(seconds["pyprune"]) / read
    benchmark.extra_info.update(bytes=OUT * IN * 2, read_bytes_per_second=read, share_of_read_limit=share)
    table(
        f"bf16 linear {OUT} x {IN}",
        {
            "rows": str(rows),
            "ms": f"{1e3 * median(seconds['pyprune']):.2f}",
            "torch, ms": f"{1e3 * median(seconds['torch']):.2f}",
            FASTER: interval_text(benchmark.extra_info["ratio"]["torch"]),
            "of the read limit": f"{share:.0%}",
        },
    )
