"""Timing on a GPU: by the device's own events, interleaved, the L2 cache flushed; it needs torch alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

FLUSH_BYTES = 256 << 20  # several times the largest L2 cache (50 MB on sm_90)
FLUSHES = 4  # a quarter of a millisecond at 4 TB/s: by then the host has queued what is timed
K = TypeVar("K", bound=Hashable)


def interleaved(runs: Mapping[K, Callable[[], object]], device: torch.device, rounds: int) -> dict[K, list[float]]:
    """Seconds of each run in each of `rounds` rounds, which have an order of their own, after one round not counted.

    On a CUDA device the time between two events around the call, with cold caches; on a CPU the clock's.
    """
    names = list(runs)
    samples: dict[K, list[float]] = {name: [] for name in names}
    shuffle = random.Random(0).shuffle
    clock = _host_seconds
    if device.type == "cuda":
        clock = partial(_device_seconds, torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device))
    for turn in range(1 + rounds):
        shuffle(names)
        for name in names:
            seconds = clock(runs[name])
            if turn:
                samples[name].append(seconds)
    return samples


def _device_seconds(scratch: Tensor, run: Callable[[], object]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(scratch.device):
        for _ in range(FLUSHES):
            scratch.zero_()
        start.record()
        run()
        stop.record()
        stop.synchronize()
    return start.elapsed_time(stop) / 1000


def _host_seconds(run: Callable[[], object]) -> float:
    before = time.perf_counter()
    run()
    return time.perf_counter() - before


def poison(like: Tensor) -> None:
    """Leave NaN in the memory that a GPU's caching allocator will hand out next for results of this size."""
    if like.is_cuda:
        held = [torch.full(like.shape, float("nan"), dtype=t, device=like.device) for t in (torch.float32, torch.half)]
        held += [torch.full((1 << 18,), float("nan"), device=like.device) for _ in range(4)]
        del held
