"""A decoder whose matrices take 12 bits a weight instead of 16, without loss: what `Engine(compress=True)` runs.

The exponents of trained weights hardly differ within a row (DFloat11, arXiv:2504.11651, finds 2.6 bits of information in
the 8 of a bfloat16), so 4 bits say which one a weight has. Decoding a few sequences is reading weights from memory, and three
quarters of the bytes are read in three quarters of the time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import ops
from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.models.pages import Pages

MOST_COLUMNS = 65535
# Values of a row with an exponent that its code does not have: of normally distributed ones about one in 12,000.
USUAL_EXCEPTIONS, COLUMNS_AN_EXCEPTION = 3, 1024


def compressed(decoder: Decoder) -> Decoder:
    """`decoder` with every matrix as the bytes of `ops.compress_bfloat16`, for the operators alone: what reads or writes
    weights itself would take them for numbers. A matrix that would not get smaller stays as it is."""
    pages = Pages()

    def compress(tensor: Tensor) -> Tensor:
        if tensor.dim() != 2 or not 0 < tensor.shape[1] <= MOST_COLUMNS:
            return tensor
        small = ops.compress_bfloat16(tensor)
        return pages.copy(small) if small.nbytes < tensor.nbytes else tensor

    return decoder.map(compress)


def sizes_of(decoder: Decoder) -> Decoder:
    """`decoder` without its weights: everything that is known of them but their values."""
    return decoder.map(lambda tensor: tensor.to("meta"))


def require_compressible(decoder: Decoder) -> None:
    """InputError unless the weights are bfloat16 on a CPU."""
    if decoder.dtype != torch.bfloat16 or decoder.device.type != "cpu":
        raise InputError(
            f"compress: {decoder.name} has {str(decoder.dtype).removeprefix('torch.')} weights on {decoder.device};"
            " bfloat16 weights on a CPU are accepted"
        )


def compressed_bytes(decoder: Decoder) -> int:
    """What all tensors of `compressed(decoder)` take, from sizes alone: exact but for a row's exceptions, of which as many
    are counted as normally distributed weights have."""
    return sum(_bytes(tensor) for _, tensor in decoder.tensors())


def _bytes(tensor: Tensor) -> int:
    plain = tensor.numel() * tensor.element_size()
    if tensor.dim() != 2 or not 0 < tensor.shape[1] <= MOST_COLUMNS:
        return plain
    rows, columns = tensor.shape
    exceptions = USUAL_EXCEPTIONS + columns // COLUMNS_AN_EXCEPTION
    row = -(-columns // 64) * 96 + 4 + 4 * exceptions  # as csrc/cpu/bf12.h
    return min(plain, rows * (-(-row // 16) * 16))
