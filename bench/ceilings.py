"""What memory can deliver at most: a streaming read of a buffer far larger than any cache, by all threads.

The readers are torch's sum, the C library's memchr (looking for a byte that is not there), and a loop of loads with the
lines to come called ahead (csrc/cpu/ceiling.cpp): without the last one a decode step was quicker than the "limit". The
quickest is the yardstick.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from pyprune.ops import native

READ_BYTES = 1 << 30


class MemoryReader:
    """`READ_BYTES` of memory and the ways to read all of it with `torch.get_num_threads()` threads."""

    def __init__(self, size: int = READ_BYTES) -> None:
        self.size, self.threads = size, torch.get_num_threads()
        # On huge pages, where the system gives them: the limit is the memory's, not that of the address translation.
        memory = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):
                memory.madvise(mmap.MADV_HUGEPAGE)
        self.data = torch.frombuffer(memory, dtype=torch.float32).fill_(1)
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
