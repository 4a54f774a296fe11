"""What memory can deliver at most: a streaming read of a buffer far larger than any cache, by all threads.

The readers are torch's sum and the C library's memchr (looking for a byte that is not there): neither is our code, and
they are independent of each other. The quicker one is the yardstick.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

READ_BYTES = 1 << 30


class MemoryReader:
    """`READ_BYTES` of memory and two ways to read all of it with `torch.get_num_threads()` threads."""

    def __init__(self, size: int = READ_BYTES) -> None:
        self.size, self.threads = size, torch.get_num_threads()
        self.data = torch.ones(size // 4)
        self._pool = ThreadPoolExecutor(self.threads)
        self._memchr = ctypes.CDLL(None).memchr
        self._memchr.restype, self._memchr.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

    def torch_sum(self) -> None:
        self.data.sum()

    def memchr(self) -> None:
        """ctypes lets the other threads run while it searches."""
        ends = [self.size * turn // self.threads for turn in range(self.threads + 1)]
        start, absent = self.data.data_ptr(), 0x11  # 1.0 is the bytes 00 00 80 3f
        found = self._pool.map(lambda begin, end: self._memchr(start + begin, absent, end - begin), ends, ends[1:])
        assert not any(found), "a reader must not stop early"

    def quickest(self, tries: int = 3) -> Callable[[], None]:
        """The reader with the least best time of `tries`."""

        def best(read: Callable[[], None]) -> float:
            seconds = []
            for _ in range(tries):
                before = time.perf_counter()
                read()
                seconds.append(time.perf_counter() - before)
            return min(seconds)

        return min((self.torch_sum, self.memchr), key=best)
