"""GPU kernels in Triton, one stage a file. This folder is installed as `pyprune.triton_kernels`.

    rows           RMSNorm, SiLU product and residual around torch's own GEMM
    products       device code: a tile of x W^T, as a GEMV or on the tensor cores
    skinny_linear  up to 64 rows: projection with its norm, bias, SiLU product and residual; split-K
    wide_linear    more rows at odd sizes: the same, as a GEMM with masked ends
    qkv_rope       norm, Q/K/V projection, q/k-norm, RoPE, append to the KV cache
    attention      split-KV attention and its reduction
    cross_entropy  linear + cross-entropy by vocabulary tiles
    configs        block sizes per architecture: the fixed table
    candidates     the configurations that `pyprune tune` times (how it chooses: pyprune.study.kernel_tuning)
    tuning         the file of what it has measured, and which entry holds for a launch
    timing         timing on a GPU
    launch         how a kernel is started, or recorded instead
    inspect        compiles what the operators launch and reports registers, spills and load widths: needs no GPU

Checked on an H100, in Triton's interpreter and by compiling: for sm_86 and sm_90, and a sample for the other tables.
Importing this package is cheap and works without Triton.
"""

from __future__ import annotations

import functools
import importlib.util

OLDEST = (3, 6)  # the oldest Triton whose language and compiler these kernels are written for


@functools.cache
def why_not() -> str | None:
    """Why the kernels cannot be used here, in one line; None where they can. No GPU is looked for."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("triton")
    except PackageNotFoundError:  # a Triton built into another package has no record of its own
        return None
    numbers = tuple(int(part) for part in installed.split("+")[0].split(".")[:2])
    if numbers < OLDEST:
        return f"Triton {installed} is too old: {OLDEST[0]}.{OLDEST[1]} or newer is needed"
    return None


def available() -> bool:
    """Whether Triton is installed, in a version that the kernels work with."""
    return why_not() is None
