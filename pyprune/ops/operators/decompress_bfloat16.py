"""The lossless 12-bit code of bfloat16 weights, read.

compressed [O, S] uint8, as `compress_bfloat16` gives it, and its K -> weight [O, K] bfloat16. It looks at the head
of every row; the operators that multiply look at the first and the last one's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.ops import compressed_bf16
from pyprune.ops.specification import Operator

SCHEMA = "(Tensor compressed, int columns) -> Tensor"


def fake(compressed: Tensor, columns: int) -> Tensor:
    return compressed.new_empty(compressed.shape[0], columns, dtype=torch.bfloat16)


OPERATOR = Operator(SCHEMA, fake, compressed_bf16.decompress_bfloat16, kernels=("cpu",))
