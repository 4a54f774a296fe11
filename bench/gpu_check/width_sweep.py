"""Part: the time of one linear against its width, where the paper's odd widths lie: the saw-tooth, on this GPU.

Widths 7000 to 7300 and 8500 to 8700 of hidden size 4096, as gate/up (hidden -> width) and as down (width -> hidden), at
1, 16, 128 and 1280 rows, bf16. First some widths of every alignment, then ever more between them, until the time is up.
Options: `seconds`.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu_check import paper_rows
from bench.gpu_check.environment import gpu_report
from bench.gpu_check.race import quiet
from bench.gpu_check.settings import Save, Settings
from pyprune import ops
from pyprune.ops import gpu
from pyprune.pruning.apply import padded_width
from pyprune.strides import gpu_rows, gpu_stride
from pyprune.study.alignment import alignments
from pyprune.study.linears import ROLES, TABLE_1, Pool, shape_of

HIDDEN, RANGES, ROWS, ROUNDS = 4096, ((7000, 7300), (8500, 8700)), (1, 16, 128, 1280), 5
DRY_HIDDEN, DRY_RANGES, DRY_ROWS, DRY_ROUNDS = 64, ((96, 130),), (1, 4), 2
SECONDS, MEASURING = 58, 42.0
"""Expected on an H200, the start of the process included; and of these for measuring."""

CUBLAS, CUBLAS_STRIDES, CUBLAS_TO_8, OURS, OURS_STRIDES = (
    "cuBLAS", "cuBLAS, padded strides", "cuBLAS, width to 8", "pyprune, packed", "pyprune, padded strides",
)  # fmt: skip
SIDES = (CUBLAS, CUBLAS_STRIDES, CUBLAS_TO_8, OURS, OURS_STRIDES)
"""As a checkpoint has it; rows as weights are placed on a GPU (`strides.gpu_rows`) and the same logical width; computed
with the width rounded up to 8; our operator on packed rows and on rows as they are placed."""

MOST_CALLS = 8
SAVE_EVERY = 6.0
OFFSETS = (0, 64, 32, 16, 8, 4, 2, 1)
"""Of the first widths from multiples of 128: one of every alignment."""


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """Raw seconds of every point, in the order in which they were taken, and the alignment that each side needs."""
    quiet()
    dry, device = settings.dry_run, torch.device(settings.device)
    hidden, ranges, rows, rounds = (
        (DRY_HIDDEN, DRY_RANGES, DRY_ROWS, DRY_ROUNDS) if dry else (HIDDEN, RANGES, ROWS, ROUNDS)
    )
    budget = settings.options.get("seconds", 2.0 if dry else MEASURING)
    pool = Pool(hidden, padded_width(ranges[-1][1], 64), torch.bfloat16, device)
    result: dict[str, Any] = {
        "what": "width-sweep", "gpu": gpu_report(), "device": paper_rows.name_of_device(device), "dtype": "bfloat16",
        "hidden": hidden, "ranges": [list(alignment) for alignment in ranges], "rows": list(rows), "rounds": rounds,
        "sides": list(SIDES), "bandwidth": settings.bandwidth, "points": [], "errors": {}, "finished": False,
    }  # fmt: skip
    recorder = Recorder(device)
    gc.collect()
    gc.disable()
    began = kept = time.perf_counter()
    try:
        for width, role, count in order(ranges, rows, hidden):
            point = _point(pool, recorder, width, role, count, hidden, rounds, result["errors"])
            result["points"].append(point)
            now = time.perf_counter()
            if now - began > budget:
                break
            if now - kept > SAVE_EVERY:
                save(result)
                kept = now
        else:
            result["finished"] = True
    finally:
        gc.enable()
    result["measuring_seconds"] = time.perf_counter() - began
    result["alignment"] = [asdict(alignment) for alignment in alignments(result["points"], hidden)]
    return result


def order(ranges: Any, rows: tuple[int, ...], hidden: int) -> Iterator[tuple[int, str, int]]:
    """Every point once: (width, role, rows). Stage by stage over all roles and rows: first widths of each alignment and
    the paper's own, then every fourth, every second, and the rest; each stage shuffled, so that no drift bends a
    line."""
    inside = [width for low, high in ranges for width in range(low, high + 1)]
    paper = set(TABLE_1.get(hidden, ()))
    stages: list[Callable[[int], bool]] = [
        lambda width: width % 128 in OFFSETS or width in paper,
        lambda width: not width % 8,
        lambda width: width % 16 in (1, 2, 4, 7, 12, 14),
        lambda width: bool(width % 4),
        lambda width: True,
    ]
    done: set[int] = set()
    for stage in stages:
        widths = [width for width in inside if width not in done and stage(width)]
        done.update(widths)
        points = [(width, role, count) for width in widths for count in rows for role in ROLES]
        random.Random(0).shuffle(points)
        yield from points


def _point(
    pool: Pool,
    recorder: Recorder,
    width: int,
    role: str,
    rows: int,
    hidden: int,
    rounds: int,
    errors: dict[str, str],
) -> dict[str, Any]:
    """Seconds of one call on each side, a value a round; the rounds' sides in turn."""
    steps: dict[str, tuple[Callable[[], None], int]] = {}
    for side in SIDES:
        try:
            calls = calls_of(side, pool, role, width, rows, hidden)
            steps[side] = recorder.record(calls), len(calls)
        except Exception as error:  # every kind: the text is the finding, and the other sides go on
            errors.setdefault(f"{side}, {role}, {rows} rows", f"width {width}: {type(error).__name__}: {error}"[:600])
    seconds = recorder.rounds({side: step for side, (step, _) in steps.items()}, rounds)
    return {
        "role": role, "width": width, "rows": rows,
        "seconds": {
            side: [round(value / steps[side][1], 10) for value in samples] for side, samples in seconds.items()
        },
    }  # fmt: skip


def calls_of(side: str, pool: Pool, role: str, width: int, rows: int, hidden: int) -> list[Callable[[], object]]:
    """A call for each of the weights that lie one after the other in the pool, several times any L2 cache in all."""
    if side == CUBLAS_TO_8:
        width = padded_width(width, 8)
    out, inner = shape_of(role, width, hidden)
    spread = side in (CUBLAS_STRIDES, OURS_STRIDES)
    x, packed = pool.activations(rows, inner), pool.weights(out, inner, inner)
    count = max(1, min(MOST_CALLS, pool.size // (out * inner)))
    weights = [gpu_rows(next(packed)) if spread else next(packed) for _ in range(count)]
    x = gpu_rows(x) if spread else x
    if side in (OURS, OURS_STRIDES):
        return [partial(ops.padded_linear, x, weight) for weight in weights]
    stride = gpu_stride(out, pool.dtype.itemsize) if spread else out
    store = torch.empty(rows, stride, dtype=pool.dtype, device=pool.device)
    return [partial(_into, x, weight, store[:, :out]) for weight in weights]


def _into(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    return torch.mm(x, weight.T, out=out)


class Recorder:
    """Records chains of calls and times their replays by the device's events; on a CPU it just calls them.

    Not `replays.chain_replay`: a sweep records thousands of chains, and a collection of garbage and a new pool of
    memory for each would take the time that there is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._shuffle = random.Random(1).shuffle
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._pool = torch.cuda.graph_pool_handle()

    @torch.inference_mode()
    def record(self, calls: list[Callable[[], object]]) -> Callable[[], None]:
        """A replay of all calls in their order; one of them runs before, so that kernels are compiled and loaded."""
        if self._device.type != "cuda":

            def run() -> None:
                with torch.inference_mode():
                    for call in calls:
                        call()

            return run
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # weights and activations are made on that
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            calls[0]()
            self._stream.synchronize()
            with gpu.recording(self._device):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    for call in calls:
                        call()
                finally:
                    graph.capture_end()

        def replay(_: object = calls) -> None:  # the calls hold the tensors that the graph reads and writes
            graph.replay()

        return replay

    def rounds(self, steps: dict[str, Callable[[], None]], count: int) -> dict[str, list[float]]:
        """Seconds of each step in each of `count` rounds of an order of their own, after one that does not count."""
        samples: dict[str, list[float]] = {name: [] for name in steps}
        names = list(steps)
        if self._device.type != "cuda":
            for turn in range(count + 1):
                self._shuffle(names)
                for name in names:
                    before = time.perf_counter()
                    steps[name]()
                    if turn:
                        samples[name].append(time.perf_counter() - before)
            return samples
        events = []
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            for turn in range(count + 1):
                self._shuffle(names)
                for name in names:
                    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    start.record()
                    steps[name]()
                    stop.record()
                    events += [(name, start, stop)] if turn else []
            self._stream.synchronize()
        for name, start, stop in events:
            samples[name].append(start.elapsed_time(stop) / 1000)
        return samples


@torch.inference_mode()
def warm(settings: Settings) -> str:
    """Run our operator once at a width of every alignment: kernels differ by alignment and rows, not by width."""
    device = torch.device(settings.device)
    hidden, ranges, rows = (DRY_HIDDEN, DRY_RANGES, DRY_ROWS) if settings.dry_run else (HIDDEN, RANGES, ROWS)
    pool = Pool(hidden, padded_width(ranges[-1][1], 64), torch.bfloat16, device)
    base = padded_width(ranges[0][0], 64)
    widths = [base + offset for offset in (0, 1, 2, 4, 8, 16, 32)]
    for width in widths:
        for role in ROLES:
            for count in rows:
                for side in (OURS, OURS_STRIDES):
                    calls_of(side, pool, role, width, count, hidden)[0]()
    return f"widths {widths}, rows {rows}"
