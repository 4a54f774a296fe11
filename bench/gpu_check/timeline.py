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
    kernels = []
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if on_device else event.self_cpu_time_total
        if microseconds > 0:
            kernels.append(
                {"kernel": event.key[:120], "launches": event.count / steps, "seconds": microseconds / 1e6 / steps}
            )
    kernels.sort(key=lambda kernel: -kernel["seconds"])
    others = kernels[KERNELS:]
    if others:
        summed = {name: sum(kernel[name] for kernel in others) for name in ("launches", "seconds")}
        kernels = [*kernels[:KERNELS], {"kernel": f"{len(others)} others", **summed}]
    return {
        "launches": sum(kernel["launches"] for kernel in kernels),
        "seconds": sum(kernel["seconds"] for kernel in kernels),
        "kernels": kernels,
    }
