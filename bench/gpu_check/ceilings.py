"""Part: what this device can do at most: bytes per second of a copy and of a read, and a large bf16 product."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.gpu_check.race import free
from bench.gpu_check.settings import Save, Settings

ROUNDS = 15


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """`bandwidth` (bytes/s) is the greater of copy (bytes read and written) and read: the yardstick for decoding."""
    device = torch.device(settings.device)
    size = 1 << 22 if settings.dry_run else min(4 << 30, torch.cuda.mem_get_info()[0] // 4)
    result = memory_rates(size, device)
    save(result)
    free(device)
    return {**result, **product_rate(128 if settings.dry_run else 8192, device)}


def memory_rates(size: int, device: torch.device) -> dict[str, Any]:
    """Copying and reading `size` bytes: raw seconds, and bytes per second from their medians."""
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source), device)
    reads = {"sum": source.sum, "amax": source.amax, "dot": lambda: torch.dot(source, source)}
    read = {name: seconds(function, device) for name, function in reads.items()}
    rates = {
        "copy_bandwidth": 2 * source.nbytes / statistics.median(copy),
        # The quickest of three reductions: a slow one is the reduction's limit and not the memory's.
        "read_bandwidth": source.nbytes / min(map(statistics.median, read.values())),
    }
    timings = {"bytes": source.nbytes, "copy_seconds": copy, "read_seconds": read, **rates}
    return {**timings, "bandwidth": max(rates.values())}


def product_rate(size: int, device: torch.device) -> dict[str, Any]:
    """A square bf16 product: raw seconds, and operations per second from their median."""
    # Random values: on zeros a GPU draws less power and runs faster than it will on weights.
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    samples = seconds(lambda: a @ b, device)
    return {"gemm_size": size, "gemm_seconds": samples, "gemm_flops": 2 * size**3 / statistics.median(samples)}


def seconds(function: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds of each of ROUNDS calls after three: by device events, or by the clock on a CPU."""
    samples = []
    for turn in range(3 + ROUNDS):
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            stop.record()
            stop.synchronize()
            elapsed = start.elapsed_time(stop) / 1000
        else:
            before = time.perf_counter()
            function()
            elapsed = time.perf_counter() - before
        if turn >= 3:
            samples.append(elapsed)
    return samples
