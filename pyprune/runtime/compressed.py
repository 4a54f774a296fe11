"""A decoder whose matrices take 12 bits a weight instead of 16, without loss: what `Engine(compress=True)` runs.

The exponents of trained weights hardly differ within a row (DFloat11, arXiv:2504.11651, finds 2.6 bits of information
in the 8 of a bfloat16), so 4 bits say which one a weight has. Decoding a few sequences is reading weights from memory,
and three quarters of the bytes are read in three quarters of the time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import ops
from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.models.pages import Pages
from pyprune.ops.reference import MOST_COLUMNS, compressed_row_bytes
from pyprune.runtime import memory

# Of normally distributed values about one in 8,000 is an exception; the row with most of them decides.
USUAL_EXCEPTIONS, COLUMNS_AN_EXCEPTION = 2, 1024


@torch.no_grad()
def compressed(decoder: Decoder) -> Decoder:
    """`decoder` with every matrix as the bytes of `ops.compress_bfloat16`, for the operators alone: whatever reads or
    writes weights itself would take them for numbers. A matrix that would not get smaller stays as it is, as one of few
    columns. Nothing shares memory with the old weights, whose pages are given back whole."""
    pages = Pages()

    def compress(tensor: Tensor) -> Tensor:
        if may_compress(tensor):
            small = ops.compress_bfloat16(tensor)
            if small.nbytes < tensor.nbytes:
                return pages.copy(small)
        return pages.copy(tensor)

    smaller = decoder.map(compress)
    memory.give_back()
    return smaller


def may_compress(tensor: Tensor) -> bool:
    """Whether `tensor` is a matrix that the operator takes."""
    return tensor.dim() == 2 and tensor.dtype == torch.bfloat16 and 0 < tensor.shape[1] <= MOST_COLUMNS


def sizes_of(decoder: Decoder) -> Decoder:
    """`decoder` without its weights: everything that is known of them but their values."""
    return decoder.map(lambda tensor: tensor.to("meta"))


def require_compressible(decoder: Decoder) -> None:
    """InputError unless the weights are bfloat16 on a CPU, or their sizes alone are known."""
    if decoder.dtype != torch.bfloat16 or decoder.device.type not in ("cpu", "meta"):
        raise InputError(
            f"compress: {decoder.name} has {str(decoder.dtype).removeprefix('torch.')} weights on {decoder.device};"
            " bfloat16 weights on a CPU are accepted"
        )


def compressed_bytes(decoder: Decoder) -> int:
    """What all tensors of `compressed(decoder)` take, from sizes alone: exact but for the exceptions, of which as many
    are counted as normally distributed weights have."""
    return sum(_bytes(tensor) for _, tensor in decoder.tensors())


def compressing_bytes(decoder: Decoder) -> int:
    """The most that `compressed(decoder)` takes beside the old weights: the new ones, and the largest one twice."""
    return compressed_bytes(decoder) + max(_bytes(tensor) for _, tensor in decoder.tensors())


def _bytes(tensor: Tensor) -> int:
    plain = tensor.numel() * tensor.element_size()
    if not may_compress(tensor):
        return plain
    rows, columns = tensor.shape
    exceptions = USUAL_EXCEPTIONS + columns // COLUMNS_AN_EXCEPTION
    return min(plain, rows * compressed_row_bytes(columns, exceptions))
