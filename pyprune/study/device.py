"""The device that a study times on: waiting for it, so that a clock is read when its work is done."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch


def synchroniser(device: torch.device) -> Callable[[], None] | None:
    """A function that returns when `device` has done all it was given; None for a CPU, which never runs behind."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else None
