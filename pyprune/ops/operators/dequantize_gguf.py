"""Quantised blocks of GGUF files as floats.

blocks [bytes] uint8, quantised values of a GGUF file; type, llama.cpp's number (2 is Q4_0) -> out [..., K] in its
dtype, each computed in float32 and rounded once: the `gguf` package's values to the bit. K is a multiple of the type's
block; rows of out may lie anywhere. The kernel has GGUF_TYPES, the reference all that the package has.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyprune.ops.checks import described, expect
from pyprune.ops.specification import Operator

SCHEMA = "(Tensor blocks, int type, Tensor(a!) out) -> ()"


def reference(blocks: Tensor, type: int, out: Tensor) -> None:
    """By the `gguf` package, in NumPy. NotImplementedError for a type that it does not dequantise."""
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(type)
        values, size = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise RuntimeError(f"type: {type} is not one that gguf knows") from None
    row = out.shape[-1] if out.dim() else 1
    expect(
        blocks.device.type == "cpu" and blocks.dtype == torch.uint8 and blocks.is_contiguous(),
        f"blocks: contiguous bytes (uint8) on a CPU are expected, not {described(blocks)}",
    )
    expect(row % values == 0, f"out: rows of whole blocks of {values} values are expected, not {row} values")
    wanted = out.numel() // values * size
    expect(
        blocks.numel() == wanted,
        f"blocks: {wanted} bytes for {out.numel()} values are expected, not {blocks.numel()}",
    )
    if not out.numel():
        return
    with np.errstate(all="ignore"):  # NaN and infinity are the caller's to find
        floats = gguf.dequantize(blocks.numpy().reshape(-1, row // values * size), kind)
    out.copy_(torch.from_numpy(np.ascontiguousarray(floats)).view(out.shape))


def fake() -> None:
    return None


OPERATOR = Operator(SCHEMA, fake, reference, kernels=("cpu",))
