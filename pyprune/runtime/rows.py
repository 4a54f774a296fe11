"""Where pyprune's operators are the faster ones: on CPUs, and up to how many rows of activations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyprune.ops import native

SKINNY_ROWS = native.constant("SKINNY_ROWS")
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


# Up to how many rows a single linear runs as an operator: any number where the processor lacks such units, as torch is
# slow then or widens the weights to float32. Else torch's own GEMM is 1.00 to 1.14 times as fast beyond 200 rows (bf16,
# 2 cores of a Zen 4), less than a layer's operators save around the products.
MOST_ROWS = {dtype: SKINNY_ROWS if _has_units(dtype) else None for dtype in UNITS}
# The same for the halves of a layer.
MOST_LAYER_ROWS = {dtype: None if native.has_own_gemm(dtype) else most for dtype, most in MOST_ROWS.items()}


def worth_it(x: Tensor, most_rows: Mapping[torch.dtype, int | None] = MOST_ROWS) -> bool:
    """Whether to run activations `[..., features]` through pyprune's operators, for a linear or (MOST_LAYER_ROWS) a
    layer."""
    if x.device.type != "cpu" or x.dtype not in most_rows or x.numel() == 0:
        return False
    most = most_rows[x.dtype]
    return most is None or x.numel() // x.shape[-1] <= most
