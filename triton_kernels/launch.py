"""How a kernel is started: on the tensors' device, or only recorded, to be compiled without a GPU."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from pyprune.errors import InputError
from pyprune.triton_kernels import configs, tuning

PDL_VARIABLE = "PYPRUNE_PDL"
MAX_GRID = (2**31 - 1, 65_535, 65_535)
"""The largest grid that CUDA takes, in x, y and z."""


@dataclass(frozen=True)
class Launch:
    """One start of a kernel, as recorded."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int
    stages: int
    registers: int


_recorded: list[Launch] | None = None
_arch: configs.Architecture | None = None
_tried: configs.Config | None = None
_spills: list[int] = []
_only_compiled = False


@contextmanager
def compiling_ahead(threads: int) -> Iterator[None]:
    """Within it, operators on a GPU start nothing: their kernels are compiled, `threads` at a time, until its end. A
    kernel that does not compile raises no error here, but in the call that starts it."""
    global _only_compiled
    before = _only_compiled
    with ThreadPoolExecutor(threads) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        _only_compiled = True
        try:
            yield
        finally:
            _only_compiled = before


@contextmanager
def recording(arch: configs.Architecture) -> Iterator[list[Launch]]:
    """Within it, operators called with meta tensors take tiles of `arch` and start nothing. Yields their launches."""
    global _recorded, _arch
    before = _recorded, _arch
    _recorded, _arch = [], arch
    try:
        yield _recorded
    finally:
        _recorded, _arch = before


def architecture(device: torch.device) -> configs.Architecture:
    """The table of block sizes for `device`, or that of `recording`."""
    return configs.architecture(device) if _arch is None else _arch


def dependent(device: torch.device) -> bool:
    """Whether skinny kernels are set up while the kernel before them runs (programmatic dependent launch).

    The kernels' PDL. On GPUs from compute capability 9.0 on, unless PYPRUNE_PDL is 0.
    """
    return architecture(device).dependent_launch and dependent_wanted()


@functools.cache
def dependent_wanted() -> bool:
    """Whether the environment leaves it on."""
    value = os.environ.get(PDL_VARIABLE, "")
    if value not in ("", "0", "1"):
        raise InputError(f"{PDL_VARIABLE}: 0 (off) or 1 (on) is expected, not {value!r}")
    return value != "0" and not triton.knobs.runtime.interpret  # its instructions are not interpreted


@contextmanager
def trying(config: configs.Config) -> Iterator[list[int]]:
    """Within it, operators take `config` instead of their own. Yields the spilled words a thread of each kernel."""
    global _tried, _spills
    before = _tried, _spills
    _tried, _spills = config, []
    try:
        yield _spills
    finally:
        _tried, _spills = before


def configured(
    fixed: configs.C, device: torch.device, operator: str, dtype: torch.dtype, shape: configs.Shape
) -> configs.C:
    """The configuration to launch with: that of `trying`, else the one measured on this GPU, else the fixed one."""
    config: configs.Config | None = _tried
    if config is None and _arch is None and device.type == "cuda":
        config = tuning.chosen(device, operator, dtype, shape)
    if config is None:
        return fixed
    assert isinstance(config, type(fixed))
    return config


def skinny_tile(device: torch.device, operator: str, rows: int, weight: Tensor, pair: bool) -> configs.Tile:
    """The tile for `rows` (1 to 64) activation rows against `weight` [columns, inner]."""
    fixed = configs.skinny_tile(architecture(device), rows, weight.dtype, pair)
    return configured(fixed, device, operator, weight.dtype, configs.shape_of(fixed, *weight.shape))


def launch(
    kernel: Any, grid: tuple[int, ...], device: torch.device, warps: int, stages: int, registers: int = 0,
    **arguments: object,
) -> None:  # fmt: skip
    """Start `kernel` over `grid` on the current stream of `device`; `registers`: limit a thread, 0 for none.

    RuntimeError naming the kernel and its tensors for a grid beyond CUDA's limits.
    """
    _check_grid(kernel, grid, arguments)
    started = Launch(kernel, grid, arguments, warps, stages, registers)
    if _recorded is not None:
        _recorded.append(started)
    elif device.type == "cuda" and device.index not in (None, torch.cuda.current_device()):
        with torch.cuda.device(device):  # Triton starts kernels on the current device
            _start(started)
    else:
        _start(started)


def _check_grid(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
    if all(0 < size <= limit for size, limit in zip(grid, MAX_GRID, strict=False)):
        return
    sizes = ", ".join(f"{name} {list(a.shape)}" for name, a in arguments.items() if isinstance(a, Tensor))
    limits = " x ".join(map(str, MAX_GRID[: len(grid)]))
    raise RuntimeError(
        f"{kernel.__name__.removesuffix('_kernel')} of {sizes}: a grid of {' x '.join(map(str, grid))} programs; 1 to "
        f"{limits} are accepted (fewer rows or heads at a time)"
    )


def _start(started: Launch) -> None:
    if _only_compiled:
        started.kernel.warmup(**started.arguments, **options(started), grid=started.grid)
        return
    compiled = started.kernel[started.grid](**started.arguments, **options(started))
    if _tried is not None:
        _spills.append(getattr(compiled, "n_spills", 0) or 0)  # nothing is compiled in the interpreter


def options(recorded: Launch) -> dict[str, int | None]:
    """Triton's options for a launch: how the kernel is compiled, and whether it starts while the one before runs.

    Multiplication and addition are fused (FMA), whatever Triton's default.
    """
    return {
        "num_warps": recorded.warps,
        "num_stages": recorded.stages,
        "maxnreg": recorded.registers or None,
        "enable_fp_fusion": True,
        "launch_pdl": bool(recorded.arguments.get("PDL", False)),
    }


def stride_unit(*matrices: Tensor) -> int:
    """The unit of the row strides, in elements: 16 bytes' worth where every row starts on 16 bytes, else 1.

    Triton itself specializes on strides divisible by 16 elements only. A stride passed as `stride // unit`, which the
    kernel multiplies by the constant unit, shows every alignment down to 16 bytes, padding to 8 elements included.
    """
    size = 16 // matrices[0].element_size()
    # The stride of a single row is never used.
    aligned = all(m.data_ptr() % 16 == 0 and (m.shape[0] == 1 or m.stride(0) % size == 0) for m in matrices)
    return size if aligned else 1


def row_stride(rows: Tensor) -> int:
    """Values from row to row of `rows` [..., N], contiguous or of `empty_rows`."""
    return rows.stride(-2) if rows.dim() > 1 else rows.shape[0]


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(n: int, minimum: int = 1) -> int:
    return max(triton.next_power_of_2(n), minimum)
