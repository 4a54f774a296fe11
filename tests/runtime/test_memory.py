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


GIB = 2**30
HOST = {"proc/meminfo": f"MemAvailable: {64 * 2**20} kB\n"}


def second(limit: int | str, used: int, inactive: int = 0) -> dict[str, str]:
    """The files of a control group of version 2."""
    stat = f"anon 5\ninactive_file {inactive}\n"
    return {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": stat}


def first(limit: int, used: int, inactive: int = 0) -> dict[str, str]:
    """The files of a control group of version 1."""
    stat = f"inactive_file 3\ntotal_inactive_file {inactive}\n"
    return {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": f"{used}\n", "memory.stat": stat}


@pytest.mark.parametrize(
    ("cgroup", "groups", "limit", "free"),
    [
        ("0::/\n", {"": second(4 * GIB, 3 * GIB, GIB)}, 4 * GIB, 2 * GIB),
        ("0::/\n", {"": second("max", 3 * GIB)}, None, 64 * GIB),
        ("0::/job/task\n", {"job": second(4 * GIB, 3 * GIB), "job/task": second("max", GIB)}, 4 * GIB, GIB),
        # The parent's limit is the larger, but others have used it up.
        ("0::/a/b\n", {"a": second(8 * GIB, 7 * GIB), "a/b": second(5 * GIB, 2 * GIB)}, 5 * GIB, GIB),
        ("0::/unseen/of/the/host\n", {"": second(4 * GIB, GIB)}, 4 * GIB, 3 * GIB),
        ("0::/../x\n", {"": second(4 * GIB, GIB), "x": second(GIB, 0)}, 4 * GIB, 3 * GIB),
        ("1:cpu:/j\n0::/j\n", {"unified/j": second(4 * GIB, GIB)}, 4 * GIB, 3 * GIB),
        ("4:memory:/job\n0::/\n", {"memory/job": first(4 * GIB, 3 * GIB, GIB)}, 4 * GIB, 2 * GIB),
        ("4:cpu,memory:/job\n", {"memory": first(4 * GIB, 3 * GIB)}, 4 * GIB, GIB),
        ("4:memory:/job\n", {"memory/job": first(2**63 - 4096, GIB)}, None, 64 * GIB),
        ("4:memory:/job\n", {"memory/other": first(4 * GIB, GIB), "job": second(GIB, 0)}, None, 64 * GIB),
        ("4:memory:/a:b\n", {"memory/a:b": first(4 * GIB, GIB)}, 4 * GIB, 3 * GIB),
        (None, {}, None, 64 * GIB),
    ],
)
def test_the_limits_of_all_control_groups_count(tmp_path, monkeypatch, cgroup, groups, limit, free):
    files = HOST | ({} if cgroup is None else {"proc/self/cgroup": cgroup})
    for group, contents in groups.items():
        files |= {f"sys/fs/cgroup/{group}/{name}": text for name, text in contents.items()}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    assert memory.cgroup_limit() == limit
    assert memory.available() == free


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
