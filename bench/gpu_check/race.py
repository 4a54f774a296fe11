"""Timing contestants against each other, the failing ones told and left out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pyprune.study.device import synchroniser
from pyprune.study.measure import interleave


def race(
    contestants: Mapping[Any, Callable[[], object]], device: torch.device, runs: int
) -> tuple[dict[Any, list[float]], dict[Any, str]]:
    """Seconds of each run, interleaved round by round; and the error of each that failed when it was first tried.

    That first try is the warm-up: kernels compile, buffers are made and graphs are recorded in it.
    """
    ready, errors = fit(contestants, device)
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()  # a collection in the middle of a run would be charged to whoever allocates then
    try:
        return interleave(ready, runs, synchronise=synchroniser(device)), errors
    finally:
        if enabled:
            gc.enable()


def fit(
    contestants: Mapping[Any, Callable[[], Any]], device: torch.device
) -> tuple[dict[Any, Callable[[], Any]], dict[Any, str]]:
    """Those that could run once, and the error of each other."""
    synchronise = synchroniser(device)
    ready, errors = {}, {}
    for name, run in contestants.items():
        try:
            run()
            if synchronise is not None:
                synchronise()
            ready[name] = run
        except Exception as error:  # every kind: the text is the finding
            errors[name] = f"{type(error).__name__}: {error}"[:1500]
    return ready, errors


def free(device: torch.device) -> None:
    """Give back what the last model held; call it when nothing refers to that model any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def quiet() -> None:
    """Keep transformers from filling the log."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
