"""How a kernel is started: on the tensors' device, or only recorded, so that it can be compiled without a GPU.

Not yet run on hardware.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from pyprune.triton_kernels import configs


@dataclass(frozen=True)
class Launch:
    """One start of a kernel, as recorded."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int
    stages: int


_recorded: list[Launch] | None = None
_arch: configs.Architecture | None = None


@contextmanager
def recording(arch: configs.Architecture) -> Iterator[list[Launch]]:
    """Within it, operators called with meta tensors choose tiles for `arch` and start nothing; gives their launches."""
    global _recorded, _arch
    before = _recorded, _arch
    _recorded, _arch = [], arch
    try:
        yield _recorded
    finally:
        _recorded, _arch = before


def architecture(device: torch.device) -> configs.Architecture:
    """The table of block sizes that holds for `device`, or the one that `recording` names."""
    return configs.architecture(device) if _arch is None else _arch


def launch(
    kernel: Any, grid: tuple[int, ...], device: torch.device, warps: int, stages: int, **arguments: object
) -> None:
    """Start `kernel` over `grid` on the current stream of `device`."""
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, arguments, warps, stages))
    elif device.type == "cuda" and device.index not in (None, torch.cuda.current_device()):
        with torch.cuda.device(device):  # Triton starts kernels on the current device
            kernel[grid](**arguments, num_warps=warps, num_stages=stages)
    else:
        kernel[grid](**arguments, num_warps=warps, num_stages=stages)


def unit(*matrices: Tensor) -> int:
    """In how many elements the row strides are counted: 16 bytes' worth where every row starts on 16 bytes, else 1.

    Triton sees by itself only strides divisible by 16 elements. A stride passed as `stride // unit` and multiplied by
    the constant again in the kernel shows every alignment down to 16 bytes, padding to 8 elements included.
    """
    size = 16 // matrices[0].element_size()
    aligned = all(m.data_ptr() % 16 == 0 and m.stride(0) % size == 0 for m in matrices)
    return size if aligned else 1


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(n: int, least: int = 1) -> int:
    return max(triton.next_power_of_2(n), least)
