"""What memory can deliver at most: streaming reads of a buffer as large as a 1B model's weights, by all threads.

The readers are torch's sum, the C library's memchr (looking for a byte that is not there), and a loop of loads with the
next lines prefetched (csrc/cpu/read_bandwidth.cpp): without the last one a decode step was quicker than the "limit".
The quickest is the yardstick. It reads as many bytes as the decode steps it is held against, for a machine that is
shared gives other rates over hundredths of a second than over seconds.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from pyprune.models.pages import Pages
from pyprune.ops import native

READ_BYTES = 5 << 29


@dataclass(frozen=True)
class Reading:
    """A reader that goes over its buffer `times` times, `bytes` in all."""

    read: Callable[[], None]
    times: int
    bytes: int

    def run(self) -> None:
        for _ in range(self.times):
            self.read()


class MemoryReader:
    """`READ_BYTES` of memory and the ways to read all of it with `torch.get_num_threads()` threads."""

    def __init__(self, size: int = READ_BYTES) -> None:
        self.size, self.threads = size, torch.get_num_threads()
        # On the pages that weights have: the limit is the memory's, not that of the address translation.
        self.data = Pages().empty((size // 4,), torch.float32).fill_(1)
        self._pool = ThreadPoolExecutor(self.threads)
        self._memchr = ctypes.CDLL(None).memchr
        self._memchr.restype, self._memchr.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
        self._read = None
        if native.load():
            self._read = ctypes.CDLL(str(native.LIBRARY_PATH)).pyprune_read
            self._read.restype, self._read.argtypes = ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_int64]

    def torch_sum(self) -> None:
        self.data.sum()

    def memchr(self) -> None:
        """ctypes lets the other threads run while it searches."""
        ends = [self.size * turn // self.threads for turn in range(self.threads + 1)]
        start, absent = self.data.data_ptr(), 0x11  # 1.0 is the bytes 00 00 80 3f
        found = self._pool.map(lambda begin, end: self._memchr(start + begin, absent, end - begin), ends, ends[1:])
        assert not any(found), "a reader must not stop early"

    def loads(self) -> None:
        """The native library's loop."""
        assert self._read is not None
        self._read(self.data.data_ptr(), self.size)

    def reading(self, total: int) -> Reading:
        """About `total` bytes by the quickest reader: whole rounds of the buffer, at least one."""
        times = max(1, round(total / self.size))
        return Reading(self.quickest(), times, times * self.size)

    def quickest(self, tries: int = 3) -> Callable[[], None]:
        """The reader with the least best time of `tries`."""

        def best(read: Callable[[], None]) -> float:
            seconds = []
            for _ in range(tries):
                before = time.perf_counter()
                read()
                seconds.append(time.perf_counter() - before)
            return min(seconds)

        readers = [self.torch_sum, self.memchr, *([self.loads] if self._read is not None else [])]
        return min(readers, key=best)
