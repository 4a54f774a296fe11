"""Where pyprune's operators are faster than torch: on CPUs, and up to how many rows of activations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyprune.ops import native

SKINNY_ROWS = native.constant("SKINNY_ROWS")
# With such an instruction set a processor multiplies this dtype faster than float32, and torch makes use of it.
ISA_FEATURES = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
    torch.float32: (),
}


def _has_instructions(dtype: torch.dtype) -> bool:
    """Whether this processor has instructions for `dtype`; False where this version of torch cannot tell."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(feature) for feature in ISA_FEATURES[dtype])


# Up to how many rows a single linear runs as an operator: any number where the processor lacks such instructions, as
# torch is slow then or widens the weights to float32. Else torch's own GEMM is 1.00 to 1.14 times as fast beyond 200
# rows (bf16, 2 cores of a Zen 4), less than a layer's operators save around the products.
MAX_ROWS = {dtype: SKINNY_ROWS if _has_instructions(dtype) else None for dtype in ISA_FEATURES}
# The same for the sublayers of a decoder layer.
MAX_LAYER_ROWS = {dtype: None if native.has_own_gemm(dtype) else rows for dtype, rows in MAX_ROWS.items()}


def worth_it(x: Tensor, max_rows: Mapping[torch.dtype, int | None] = MAX_ROWS) -> bool:
    """Whether to run activations `[..., features]` through pyprune's operators, for a linear or, with MAX_LAYER_ROWS,
    for a decoder layer."""
    if x.device.type != "cpu" or x.dtype not in max_rows or x.numel() == 0:
        return False
    limit = max_rows[x.dtype]
    return limit is None or x.numel() // x.shape[-1] <= limit
