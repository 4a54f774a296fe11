"""Memory for weights, one tensor behind the other in the order in which a decode step reads them, on huge pages.

At batch 1 a step is one reading of all weights. On pages of 4 KiB, each tensor where the allocator had room, the
processor's own look-ahead ends with every page and addresses have to be looked up again; on pages of 2 MiB side by side
the same step of SmolLM2 in bf16 was 1.3 times as fast on 2 cores of a Zen 4
(bench/test_decode_limits.py, `-k huge`).

`PYPRUNE_HUGE_PAGES=0` leaves all this out: where memory is provided anew (a virtual machine whose host takes back what
is free) huge pages make loading slower.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from math import prod
from threading import Lock

import torch
from torch import Tensor

from pyprune.strides import gpu_rows

HUGE_PAGE = 2 << 20
CHUNK = 64 << 20  # unless one tensor needs more: memory is given back a chunk at a time, with its last tensor
LINE = 64  # bytes; every tensor begins on a line of the cache
PADDED_ON = ("cuda",)  # types of devices on which rows are placed for wide loads


class Pages:
    """A supply of tensors for one model's weights. Elsewhere than on Linux they are torch's ordinary ones, and so they
    are where not `together`: weights that come and go one by one must not hold each other's memory."""

    def __init__(self, together: bool = True) -> None:
        self._together = together and hasattr(mmap, "MADV_HUGEPAGE") and os.environ.get("PYPRUNE_HUGE_PAGES") != "0"
        self._lock = Lock()
        self._chunk: mmap.mmap | None = None
        self._next = self._end = 0  # places in the chunk
        self._given = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor with memory of its own on the CPU, its values undefined."""
        count = prod(shape)
        size = count * dtype.itemsize
        if not size or not self._together:
            return torch.empty(shape, dtype=dtype)
        with self._lock:
            if self._chunk is None or self._next + size > self._end:
                try:
                    self._open(size)
                except OSError:  # no room for a whole chunk, perhaps for this tensor
                    return torch.empty(shape, dtype=dtype)
            start, self._next = self._next, _up(self._next + size, LINE)
            self._given += size
            return torch.frombuffer(self._chunk, dtype=dtype, count=count, offset=start).view(shape)

    def copy(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """`tensor`'s values on these pages, contiguous, in another dtype where one is given."""
        return self.empty(tuple(tensor.shape), dtype or tensor.dtype).copy_(tensor)

    def move(
        self, tensor: Tensor, dtype: torch.dtype | None, device: torch.device | str | None, share: bool = True
    ) -> Tensor:
        """`tensor.to(device, dtype)`, on these pages where the CPU gets a new one: always, unless it may `share`. On a
        GPU a matrix of odd width gets rows that start on 128 bytes (`gpu_rows`), also one that is there already."""
        place = torch.device(device or tensor.device).type
        if place in PADDED_ON:
            return gpu_rows(tensor.to(device=device, dtype=dtype))
        if place != "cpu":
            return tensor.to(device=device, dtype=dtype)
        same = tensor.device.type == "cpu" and tensor.dtype == (dtype or tensor.dtype)
        return tensor if share and same else self.copy(tensor, dtype)

    def _open(self, size: int) -> None:
        """Begin a chunk with room for `size` bytes: as much as was given out so far, so that little is left over."""
        room = _up(max(size, min(self._given, CHUNK)), HUGE_PAGE)
        chunk = mmap.mmap(-1, room + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._close()
        self._chunk = chunk
        with suppress(OSError):  # a kernel without them
            self._chunk.madvise(mmap.MADV_HUGEPAGE)
        address = torch.frombuffer(self._chunk, dtype=torch.uint8).data_ptr()
        self._next = _up(address, HUGE_PAGE) - address
        self._end = self._next + room

    def _close(self) -> None:
        """Give back what the chunk's last huge page holds beyond its last tensor."""
        if self._chunk is not None and (rest := _up(self._next, mmap.PAGESIZE)) < self._end:
            self._chunk.madvise(mmap.MADV_DONTNEED, rest, len(self._chunk) - rest)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
