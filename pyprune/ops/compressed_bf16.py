"""The lossless 12-bit code of bfloat16 weights: its reference implementation, value by value.

A row `[K]` has a head of 16 bytes, then for each group of 64 values their signs and mantissas (64 bytes) and 4 bits a
value for its exponent among 15 neighbours (32 bytes). A value with any other exponent is an exception of 4 bytes: its
column and its bits; the first two stand in the head, the others behind the groups. csrc/cpu/compressed_bf16.h is the
same in C++. The idea is that of DFloat11 (arXiv:2504.11651), with codes of one length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.ops.checks import described, expect

STORED = torch.uint8
"""The dtype of compressed rows: a weight of it is compressed bfloat16, for the operators and their kernels."""

GROUP, GROUP_BYTES = 64, 96
EXPONENTS = 15  # neighbours, the first of them is in the head
MARK = 0xBF  # in the head, of every compressed row
HEAD, IN_HEAD = 16, 2  # bytes, and exceptions among them
MOST_COLUMNS = 65535

# Of normally distributed values about one in 8,000 is an exception; the row with most of them decides.
USUAL_EXCEPTIONS, COLUMNS_AN_EXCEPTION = 2, 1024


def compressed_row_bytes(columns: int, exceptions: int) -> int:
    """Bytes of a compressed row with so many exceptions."""
    behind = -(-4 * max(0, exceptions - IN_HEAD) // 16) * 16
    return HEAD + -(-columns // GROUP) * GROUP_BYTES + behind


def usual_row_bytes(columns: int) -> int:
    """Bytes of a compressed row with as many exceptions as normally distributed weights have."""
    return compressed_row_bytes(columns, USUAL_EXCEPTIONS + columns // COLUMNS_AN_EXCEPTION)


def can_compress(weight: Tensor) -> bool:
    """Whether `compress_bfloat16` takes this tensor, wherever it lies."""
    return weight.dim() == 2 and weight.dtype == torch.bfloat16 and 0 < weight.shape[1] <= MOST_COLUMNS


def _places() -> Tensor:
    """Which byte of signs and mantissas each value of a group has."""
    value = torch.arange(GROUP)
    return value % 32 // 8 * 16 + value // 32 * 8 + value % 8


def compress_bfloat16(weight: Tensor) -> Tensor:
    expect(
        weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and weight.dim() == 2
        and 0 < weight.shape[1] <= MOST_COLUMNS and (weight.shape[1] == 1 or weight.stride(1) == 1),
        f"weight: a CPU bfloat16 matrix of 1 to {MOST_COLUMNS} columns side by side is expected, "
        f"not {described(weight)}",
    )  # fmt: skip
    rows, columns = weight.shape
    groups = -(-columns // GROUP)
    bits = torch.zeros(rows, groups * GROUP, dtype=torch.int32)
    bits[:, :columns] = weight.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF
    exponent = bits >> 7 & 0xFF
    count = torch.zeros(rows, 256, dtype=torch.int64)
    count.scatter_add_(1, exponent.to(torch.int64), torch.ones_like(exponent, dtype=torch.int64))
    count[:, 0] = 0
    base = count.unfold(1, EXPONENTS, 1).sum(2)[:, 1:].argmax(1, keepdim=True).to(torch.int32) + 1
    code = torch.where(exponent == 0, EXPONENTS, exponent - base)
    exception = (code < 0) | (code > EXPONENTS) | ((code == EXPONENTS) & (exponent != 0))
    kept = torch.where(exception, 0, bits >> 8 & 0x80 | bits & 0x7F)
    code = torch.where(exception, EXPONENTS, code)
    places = _places()
    ordered = torch.zeros(2, rows, groups, GROUP, dtype=torch.int32)
    ordered[..., places] = torch.stack((kept, code)).view(2, rows, groups, GROUP)
    nibbles = ordered[1, ..., :32] | ordered[1, ..., 32:] << 4
    body = torch.cat((ordered[0], nibbles), dim=2).reshape(rows, -1)
    numbers = exception.sum(1, dtype=torch.int32)
    most = int(numbers.max()) if rows else 0
    behind = compressed_row_bytes(columns, most) - HEAD - body.shape[1]
    listed = torch.zeros(rows, 4 * IN_HEAD + behind, dtype=torch.int32)
    row, column = exception.nonzero(as_tuple=True)
    start = 4 * (exception.cumsum(1)[row, column] - 1)
    for byte, value in enumerate((column & 0xFF, column >> 8, bits[row, column] & 0xFF, bits[row, column] >> 8)):
        listed[row, start + byte] = value.to(torch.int32)
    same = torch.tensor([[MARK, columns & 0xFF, columns >> 8, 0, 0]], dtype=torch.int32).expand(rows, 5)
    head = torch.cat((base, same[:, :1], (numbers & 0xFF)[:, None], (numbers >> 8)[:, None], same[:, 1:]), dim=1)
    return torch.cat((head, listed[:, : 4 * IN_HEAD], body, listed[:, 4 * IN_HEAD :]), dim=1).to(torch.uint8)


def decompress_bfloat16(compressed: Tensor, columns: int) -> Tensor:
    groups = -(-columns // GROUP)
    end = compressed_row_bytes(columns, 0)
    expect(
        compressed.device.type == "cpu" and compressed.dtype == torch.uint8 and compressed.dim() == 2,
        f"compressed: bytes (uint8) on a CPU are expected, not {described(compressed)}",
    )
    good = columns > 0 and compressed.shape[1] >= end and bool((compressed[:, 1] == MARK).all())
    if good:
        width = compressed[:, 4].to(torch.int32) | compressed[:, 5].to(torch.int32) << 8
        good = bool((width == columns).all())
    expect(good, f"compressed: rows of compress_bfloat16 for {columns} columns are expected")
    rows, wide = len(compressed), compressed.to(torch.int32)
    body, places = wide[:, HEAD:end].view(rows, groups, GROUP_BYTES), _places()
    kept = body[..., places]
    code = torch.where(places < 32, body[..., GROUP + places % 32] & 15, body[..., GROUP + places % 32] >> 4)
    exponent = torch.where(code == EXPONENTS, 0, code + wide[:, :1, None])
    bits = ((kept & 0x80) << 8 | exponent << 7 | kept & 0x7F).view(rows, -1)
    listed = torch.cat((wide[:, HEAD - 4 * IN_HEAD : HEAD], wide[:, end:]), dim=1)
    listed = listed[:, : listed.shape[1] // 4 * 4].reshape(rows, -1, 4)
    numbers = wide[:, 2] | wide[:, 3] << 8
    row, slot = (torch.arange(listed.shape[1]) < numbers[:, None]).nonzero(as_tuple=True)
    found = listed[row, slot]
    bits[row, (found[:, 0] | found[:, 1] << 8).to(torch.int64)] = found[:, 2] | found[:, 3] << 8
    return bits[:, :columns].to(torch.int16).view(torch.bfloat16)
