"""How results lie in memory, for tracing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyprune.strides import gpu_stride

_kernels_run: list[Callable[[torch.dtype, torch.device], bool]] = []


def ask(runs_kernels: Callable[[torch.dtype, torch.device], bool]) -> None:
    """Whom to ask whether kernels run on a GPU; without an answer the reference implementations do."""
    _kernels_run[:] = [runs_kernels]


def rows_to_project(x: Tensor, *shape: int) -> Tensor:
    """A result that a projection reads next: where kernels run on a GPU its rows start on 16 bytes."""
    *leading, width = shape
    kernels = x.device.type == "cuda" and any(runs(x.dtype, x.device) for runs in _kernels_run)
    stride = gpu_stride(width, x.dtype.itemsize) if kernels else width
    rows = x.new_empty(*leading, stride)
    return rows if stride == width else rows[..., :width]
