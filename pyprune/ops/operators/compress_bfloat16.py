"""The lossless 12-bit code of bfloat16 weights, written.

weight [O, K] bfloat16, K up to 65535 -> bytes [O, S] of 12 bits a value, without loss, and the reverse. A row has 16
bytes for its head, then sign and mantissa of each value and 4 bits for an exponent among 15 neighbours (or 0), K filled
up to groups of 64; a value with any other exponent is an exception of 4 bytes, the first two of them in the head, the
others behind. S is that of the row with most of them (csrc/cpu/compressed_bf16.h). `decompress` looks at the head of
every row; the operators that multiply look at the first and the last one's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.ops import compressed_bf16
from pyprune.ops.specification import Operator

SCHEMA = "(Tensor weight) -> Tensor"


def fake(weight: Tensor) -> Tensor:
    row = torch.library.get_ctx().new_dynamic_size()  # depends on the exponents
    return weight.new_empty(weight.shape[0], row, dtype=torch.uint8)


OPERATOR = Operator(SCHEMA, fake, compressed_bf16.compress_bfloat16, kernels=("cpu",))
