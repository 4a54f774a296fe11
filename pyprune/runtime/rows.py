"""Where pyprune's operators are the faster ones: on CPUs, and up to how many rows of activations."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.ops import native

FEW_ROWS = 64
# A processor with such units multiplies this dtype faster than float32, and torch makes use of it.
UNITS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
    torch.float32: (),
}


def _has_units(dtype: torch.dtype) -> bool:
    """Whether this processor has units for `dtype`; False where this version of torch cannot tell."""
    there = getattr(torch.cpu, "get_capabilities", dict)()
    return any(there.get(unit) for unit in UNITS[dtype])


# Up to how many rows operators run: any number where they multiply many rows themselves, or the processor lacks such units,
# so that torch would be slow or widen the weights to float32. Else torch's own bf16 GEMM did 3 times as much a second as a
# widened product (AVX512_BF16, 65 to 1024 rows, 2 cores).
MOST_ROWS = {
    dtype: FEW_ROWS if _has_units(dtype) and not native.multiplies_many_rows(dtype) else None for dtype in UNITS
}


def worth_it(x: Tensor) -> bool:
    """Whether to run activations `[..., features]` through pyprune's operators."""
    if x.device.type != "cpu" or x.dtype not in MOST_ROWS or x.numel() == 0:
        return False
    most = MOST_ROWS[x.dtype]
    return most is None or x.numel() // x.shape[-1] <= most
