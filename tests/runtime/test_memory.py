"""Free memory and refusing what does not fit."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from pyprune.errors import InputError
from pyprune.runtime import memory


def test_the_refusal_names_both_figures_and_the_remedy(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 3 * 2**30)
    with pytest.raises(InputError) as error:
        memory.require(5 * 2**30, "cpu", "scoring x", "fewer samples are expected")
    assert str(error.value) == (
        "scoring x: about 5.00 GiB are needed on cpu and 3.00 GiB are available; fewer samples are expected"
    )
    with pytest.raises(InputError, match=r"available$"):
        memory.require(5 * 2**30, "cpu", "scoring x")
    memory.require(3 * 2**30, "cpu", "scoring x")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc keeps freed memory, and can give it back")
@pytest.mark.slow
def test_freed_memory_that_the_c_library_keeps_is_given_back():
    # Every second allocation stays, so that nothing is freed in one piece.
    probe = (
        "import ctypes\n"
        "from pyprune.runtime import memory\n"
        "c = ctypes.CDLL(None)\n"
        "c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]\n"
        "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "blocks = [c.malloc(100_000) for _ in range(2000)]\n"
        "for block in blocks: ctypes.memset(block, 1, 100_000)\n"
        "for block in blocks[::2]: c.free(block)\n"
        "before = resident()\n"
        "memory.give_back()\n"
        "print((before - resident()) / 1e6)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 80 < float(done.stdout) < 110  # of the 100 MB that were freed
