"""Matrices of any width whose rows start where memory is read best, without a column more than they have.

What lies between such rows, their gap, is no part of the matrix. Where it is known to be zero (`has_zero_gap`) a GEMM
may be handed the wider view, whose size suits its fast kernels: the zeros add nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.checks import is_int
from pyprune.errors import InputError

ROW_BYTES = 64
"""A cache line of CPUs."""
WIDE_LOAD = 16
"""Bytes that a thread of a GPU loads at once; TMA takes strides of multiples of it. Rows that start on it stay."""
GPU_ROW_BYTES = 128
"""A line of a GPU's L2. Of all multiples of 16 it is the one at which cuBLAS is fastest on an A100, and 64 values of 2
bytes are whole steps of every kernel's K. It costs up to 126 bytes a row: 0.18 % at 7155, 0.73 % at 8577 columns."""
_MARK = "_pyprune_zero_gap"


def pad_stride(weight: Tensor, row_bytes: int = ROW_BYTES) -> Tensor:
    """`weight [O, K]` with every row starting on a multiple of `row_bytes`: itself where it does, else a copy of the
    same shape whose rows lie further apart, fewer than `row_bytes` between them, with zeros there.

    The copy has no gradient history. InputError for anything but a matrix, or for `row_bytes` that values do not fill.
    """
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        shown = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise InputError(f"pad_stride: {shown} given; a matrix [out, in] is expected")
    if not is_int(row_bytes) or row_bytes < 1 or row_bytes % weight.itemsize:
        raise InputError(f"pad_stride: row_bytes {row_bytes!r}: a multiple of {weight.itemsize} is expected")
    if has_padded_stride(weight, row_bytes):
        return weight
    rows, columns = weight.shape
    with torch.no_grad():
        store = weight.new_zeros(rows, _up(columns * weight.itemsize, row_bytes) // weight.itemsize)
        return mark_zero_gap(store[:, :columns].copy_(weight.detach()))


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


def gpu_rows(tensor: Tensor) -> Tensor:
    """A weight as it is kept on a GPU: itself, unless it is a matrix of which a row does not start on 16 bytes; then a
    copy of the same shape, its rows `gpu_stride` apart with zeros between them."""
    if tensor.dim() != 2 or has_padded_stride(tensor, WIDE_LOAD):
        return tensor
    odd = tensor.shape[1] * tensor.itemsize % WIDE_LOAD
    return pad_stride(tensor, GPU_ROW_BYTES if odd else WIDE_LOAD)


def gpu_stride(width: int, itemsize: int) -> int:
    """Values from row to row, on a GPU, of a weight or of an operator's result of this width."""
    size = width * itemsize
    return width if size % WIDE_LOAD == 0 else _up(size, GPU_ROW_BYTES) // itemsize


def empty_rows(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty `[..., width]` for a GPU: contiguous where rows of that width start on 16 bytes, else rows that start on
    128 with undefined values between them."""
    *leading, width = shape
    stride = gpu_stride(width, dtype.itemsize)
    rows = torch.empty(*leading, stride, dtype=dtype, device=device)
    return rows if stride == width else rows[..., :width]


def mark_zero_gap(rows: Tensor) -> Tensor:
    """`rows [..., K]`, whose caller has filled what lies between the rows with zeros and allocated it after the last
    row too. The mark is kept with the memory: views and parameters of it have it, copies do not."""
    setattr(rows.untyped_storage(), _MARK, (rows.shape[-1], rows.stride(-2)))
    return rows


def has_zero_gap(rows: Tensor) -> bool:
    """Whether zeros are known to lie behind every row of `rows [M, K]` up to the next one's start."""
    mark = getattr(rows.untyped_storage(), _MARK, None)
    return mark == (rows.shape[1], rows.stride(0)) and rows.storage_offset() % rows.stride(0) == 0


def widened(rows: Tensor, width: int) -> Tensor:
    """The view `[M, width]` of `rows [M, K]` that takes in what lies behind its rows."""
    return rows.as_strided((rows.shape[0], width), rows.stride())


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
