"""One bf16 linear of 8192 x 4096 at few rows, against torch's; and against the read limit of the same run."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F

from pyprune import ops

OUT, IN = 8192, 4096


@pytest.fixture(scope="module")
def weights() -> list[torch.Tensor]:
    """Several matrices, used in turn, so that none is still in a cache: 4 x 67 MB."""
    return [torch.randn(OUT, IN).to(torch.bfloat16) for _ in range(4)]


def read_bandwidth() -> float:
    """Bytes per second of summing 512 MB of float32, the best of 5: what this machine can read."""
    data = torch.ones(128 * 1024 * 1024)
    seconds = []
    for _ in range(5):
        before = time.perf_counter()
        data.sum()
        seconds.append(time.perf_counter() - before)
    return data.numel() * 4 / min(seconds)


@pytest.mark.parametrize("rows", [1, 4, 8, 16, 64, 1024])
def test_bf16_linear_against_torch(paired, benchmark, weights, rows: int):
    x, turn = torch.randn(rows, IN), [0]
    low = x.to(torch.bfloat16)

    def ours() -> None:
        turn[0] += 1
        ops.padded_linear(x, weights[turn[0] % 4])

    def theirs() -> None:
        turn[0] += 1
        F.linear(low, weights[turn[0] % 4])

    benchmark.extra_info["read_bytes_per_second"] = read_bandwidth()
    benchmark.extra_info["bytes"] = OUT * IN * 2
    paired(ours, theirs, 20 if rows <= 64 else 6, "torch")
    seconds = benchmark.stats.stats.median
    benchmark.extra_info["share_of_read_limit"] = OUT * IN * 2 / seconds / benchmark.extra_info["read_bytes_per_second"]
