"""Part: `pyprune doctor --gpu` as a user runs it, whose pass `auto` goes by on GPUs that it does not know."""

from __future__ import annotations

from typing import Any

import torch

from bench.gpu_check.settings import Save, Settings
from pyprune.runtime.self_check.run import self_check


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """The verdict on the first GPU; on a CPU a dry run of few items."""
    device = torch.device("cpu") if settings.dry_run else torch.device("cuda", 0)
    return self_check(device, small=settings.dry_run)
