"""Where a replay's time goes: the device's activity, summed by the name of the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyprune.study.device import synchroniser

KERNELS = 12
"""The most that are told, those that took longest; the rest is one line."""


def timeline(step: Callable[[], object], device: torch.device, steps: int) -> dict[str, Any]:
    """Seconds and launches of each kernel in one `step`, the mean of `steps` of them after one that is not counted.

    A kernel that is set up while the one before runs counts its wait too: the sums can exceed the step's own time. On a
    CPU (a dry run) torch's operators stand in for kernels.
    """
    from torch.profiler import ProfilerActivity, profile

    synchronise = synchroniser(device) or (lambda: None)
    on_device = device.type == "cuda"
    step()
    synchronise()
    with profile(activities=[ProfilerActivity.CUDA if on_device else ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
        synchronise()
    found = []
    for event in profiler.key_averages():
        taken = event.self_device_time_total if on_device else event.self_cpu_time_total
        if taken > 0:
            found.append({"kernel": event.key[:120], "launches": event.count / steps, "seconds": taken / 1e6 / steps})
    found.sort(key=lambda kernel: -kernel["seconds"])
    rest = found[KERNELS:]
    if rest:
        summed = {name: sum(kernel[name] for kernel in rest) for name in ("launches", "seconds")}
        found = [*found[:KERNELS], {"kernel": f"{len(rest)} others", **summed}]
    return {
        "launches": sum(kernel["launches"] for kernel in found),
        "seconds": sum(kernel["seconds"] for kernel in found),
        "kernels": found,
    }
