"""bf16 linears at every width of the paper's Table 1 against the next multiple of 64, and against torch's.

A linear of width w is expected to take w / W of the time at the multiple W above it: so do its bytes, and so does its
arithmetic. "Of what its neighbour predicts" is the measured time over that; at 1.00 the odd width costs nothing.
"""

from __future__ import annotations

from statistics import median

import pytest
import torch

from bench.ceilings import MemoryReader
from bench.rounds import Side
from bench.tables import FASTER, interval_text
from pyprune import ops
from pyprune.pruning.apply import padded_width
from pyprune.study.linears import ROLES, TABLE_1, Pool, flops, shape_of, torch_linear, weight_bytes
from pyprune.study.measure import speedup

MULTIPLE = 64
READ_BYTES = 256 << 20  # many times the last level of cache, and not much longer than a call
ROUNDS = {1: 40, 4: 40, 16: 30, 64: 15}
CASES = [(hidden, width) for hidden, widths in TABLE_1.items() for width in sorted(widths)]


@pytest.fixture(scope="module")
def pools() -> dict[int, Pool]:
    device = torch.device("cpu")
    return {hidden: Pool(hidden, max(widths) + MULTIPLE, torch.bfloat16, device) for hidden, widths in TABLE_1.items()}


@pytest.fixture(scope="module")
def memory() -> MemoryReader:
    return MemoryReader(READ_BYTES)


@pytest.mark.parametrize("rows", ROUNDS)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("hidden", "width"), CASES)
def test_a_width_of_table_1_against_its_aligned_neighbour(
    interleaved, benchmark, table, pools, memory, hidden: int, width: int, role: str, rows: int
):
    pool, aligned = pools[hidden], padded_width(width, MULTIPLE)

    def ours(width: int, line: int):
        out, inner = shape_of(role, width, hidden)
        weights, x = pool.weights(out, inner, padded_width(inner, line)), pool.activations(rows, inner)
        return lambda: ops.padded_linear(x, next(weights))

    sides = {
        "padded": Side(ours(width, 32)),  # rows on cache lines, as PaddedLinear keeps them
        "as it is": Side(ours(width, 1)),
        "aligned": Side(ours(aligned, 1)),
        "torch": Side(torch_linear(pool, role, width, hidden, rows)),
    }
    reading = memory.reading(READ_BYTES)
    with torch.inference_mode():
        seconds = interleaved({**sides, "memory read": Side(reading.run)}, ROUNDS[rows])
    predicted = width / aligned
    scaled = [time * predicted for time in seconds["aligned"]]
    against = {side: speedup(seconds[side], scaled) for side in ("padded", "as it is")}
    read = reading.bytes / median(seconds["memory read"])
    moved = weight_bytes(width, hidden, rows, torch.bfloat16)
    of_limit = {side: moved / median(seconds[side]) / read for side in ("padded", "torch")}
    benchmark.extra_info.update(
        hidden=hidden, width=width, role=role, rows=rows, of_predicted=against, of_read_limit=of_limit
    )
    quickest = median(seconds["padded"])
    table(
        f"bf16 linears of Table 1's widths, {torch.get_num_threads()} threads",
        {
            "width": str(width),
            "linear": role,
            "rows": str(rows),
            "ms": f"{1e3 * quickest:.2f}",
            "GB/s": f"{moved / quickest / 1e9:.1f}",
            "of the read limit": f"{of_limit['padded']:.0%}",
            "of the read limit, torch": f"{of_limit['torch']:.0%}",
            "GFLOP/s": f"{flops(width, hidden, rows) / quickest / 1e9:.0f}",
            "of what its neighbour predicts": interval_text(against["padded"], "{:.3f}"),
            "rows not padded": interval_text(against["as it is"], "{:.3f}"),
            FASTER.replace("faster", "faster than torch"): interval_text(benchmark.extra_info["ratio"]["torch"]),
        },
    )
