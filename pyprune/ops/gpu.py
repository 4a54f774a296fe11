"""Which implementation of the operators runs on a GPU.

`PYPRUNE_GPU=auto|definitions|triton`. The Triton kernels have passed the interpreter and the compiler, but have not run
on a GPU yet: `auto` runs the plain definitions there and says so once; `triton` takes the kernels.
"""

from __future__ import annotations

import importlib
import os
import warnings

import torch

from pyprune.errors import InputError
from pyprune.ops.contracts import LIBRARY

CHOICES = ("auto", "definitions", "triton")

_chosen = "definitions"


def choose() -> None:
    """Register what `PYPRUNE_GPU` names, if there is a GPU. InputError for an unknown name or one that cannot run."""
    global _chosen
    wanted = os.environ.get("PYPRUNE_GPU", "auto")
    if wanted not in CHOICES:
        raise InputError(f"PYPRUNE_GPU={wanted}: one of {', '.join(CHOICES)} is expected")
    if not torch.cuda.is_available():
        return
    if wanted == "auto":
        warnings.warn(
            "pyprune: its GPU kernels have not been checked on hardware yet, so plain PyTorch definitions run on this "
            "GPU; PYPRUNE_GPU=triton takes the kernels, PYPRUNE_GPU=definitions silences this",
            stacklevel=2,
        )
    if wanted != "triton":
        return
    kernels = importlib.import_module("pyprune.triton_kernels")
    if not kernels.available():
        raise InputError(f"PYPRUNE_GPU=triton: {kernels.why_not()}")
    importlib.import_module("pyprune.triton_kernels.registration").register(LIBRARY)
    _chosen = wanted


def recordable() -> bool:
    """Whether a step of the chosen operators can be recorded in a CUDA graph; the definitions wait for the device."""
    return _chosen != "definitions"


def report() -> dict[str, object]:
    """The choice, what there is to choose from, and why it is not the kernels where it is not."""
    there = torch.cuda.is_available()
    if _chosen != "definitions":
        reason = f"{_chosen}: never checked on hardware yet"
    elif not there:
        reason = "no GPU that this torch can use (it takes an NVIDIA driver and a CUDA build of torch)"
    else:
        reason = "plain definitions; PYPRUNE_GPU=triton takes the kernels, which have never been checked on hardware"
    return {"gpu": there, "chosen": _chosen, "choices": list(CHOICES), "reason": reason}
