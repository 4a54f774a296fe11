"""Weights of any width whose rows start where memory is read best, without a column more than they have."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.errors import InputError

ROW_BYTES = 64
"""A cache line of CPUs; on GPUs a thread loads 16 bytes at once, and TMA takes strides of multiples of 16."""


def pad_stride(weight: Tensor, row_bytes: int = ROW_BYTES) -> Tensor:
    """`weight [O, K]` with every row starting on a multiple of `row_bytes`: itself where it does, else a copy of the
    same shape whose rows lie further apart, fewer than `row_bytes` between them, with zeros there.

    The copy has no gradient history. InputError for anything but a matrix, or for `row_bytes` that values do not fill.
    """
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        shown = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise InputError(f"pad_stride: {shown} given; a matrix [out, in] is expected")
    if isinstance(row_bytes, bool) or not isinstance(row_bytes, int) or row_bytes < 1 or row_bytes % weight.itemsize:
        raise InputError(f"pad_stride: row_bytes {row_bytes!r}: a multiple of {weight.itemsize} is expected")
    if has_padded_stride(weight, row_bytes):
        return weight
    rows, columns = weight.shape
    stride = -(-columns * weight.itemsize // row_bytes) * row_bytes // weight.itemsize
    with torch.no_grad():
        store = weight.new_zeros(rows, stride)
        return store[:, :columns].copy_(weight.detach())


def has_padded_stride(weight: Tensor, row_bytes: int = ROW_BYTES) -> bool:
    """Whether every row of `weight [O, K]`, its values side by side, starts on a multiple of `row_bytes`."""
    rows, columns = weight.shape
    if not weight.numel():
        return True
    if columns > 1 and weight.stride(1) != 1:
        return False
    if rows > 1 and weight.stride(0) * weight.itemsize % row_bytes:
        return False
    # Memory has no place yet where only shapes are traced; allocators begin on at least this boundary.
    start = weight.storage_offset() * weight.itemsize
    traced = weight.is_meta or type(weight) not in (Tensor, torch.nn.Parameter)
    return (start if traced else weight.data_ptr()) % row_bytes == 0
