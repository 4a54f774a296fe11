"""The formats in which a matrix of weights can be stored, beside plain values: one entry each.

The operators recognise a format by the dtype of the stored matrix (`stored`), so every format has a dtype of its own.
Another format is an entry here, its codec (an operator each way) and kernels that read it (`DType` in
csrc/cpu/kernels.h).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyprune.ops import compressed_bf16


@dataclass(frozen=True)
class WeightFormat:
    """A way to store a matrix `[O, K]` of weights as a matrix `[O, S]` of dtype `stored`.

    values: the dtype of the weights. accepts: whether a tensor can be stored so.
    encode, decode: names of the operators for `stored = encode(weight)`, `weight = decode(stored, K)`. row_bytes: what
    a row of K weights usually takes. decode_reference: `decode` in plain PyTorch.
    """

    name: str
    values: torch.dtype
    stored: torch.dtype
    accepts: Callable[[Tensor], bool]
    encode: str
    decode: str
    row_bytes: Callable[[int], int]
    decode_reference: Callable[[Tensor, int], Tensor]

    def encoded(self, weight: Tensor) -> Tensor:
        """The stored form of a weight `[O, K]`."""
        return getattr(torch.ops.pyprune, self.encode)(weight)

    def decoded(self, stored: Tensor, columns: int) -> Tensor:
        """The weight `[O, columns]` again, to the bit."""
        return getattr(torch.ops.pyprune, self.decode)(stored, columns)


LOSSLESS12 = WeightFormat(
    name="bf16-lossless12",
    values=torch.bfloat16,
    stored=compressed_bf16.STORED,
    accepts=compressed_bf16.can_compress,
    encode="compress_bfloat16",
    decode="decompress_bfloat16",
    row_bytes=compressed_bf16.usual_row_bytes,
    decode_reference=compressed_bf16.decompress_bfloat16,
)

PLAIN = {"bf16": torch.bfloat16}
"""Names for weights that are stored as they are, in this dtype."""

FORMATS = {entry.name: entry for entry in (LOSSLESS12,)}
NAMES = (*PLAIN, *FORMATS)
_BY_DTYPE = {entry.stored: entry for entry in FORMATS.values()}
assert len(_BY_DTYPE) == len(FORMATS), "two weight formats are stored in one dtype"


def format_of(weight: Tensor) -> WeightFormat | None:
    """The format in which a weight is stored; None for plain values."""
    return _BY_DTYPE.get(weight.dtype)


def plain(weight: Tensor, columns: int) -> Tensor:
    """The values of a weight in whatever format, by the reference implementations alone."""
    entry = format_of(weight)
    return weight if entry is None else entry.decode_reference(weight, columns)
