"""How much memory a device still has, and refusing work that will not fit before it starts."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from pyprune.errors import InputError

ROOT = Path("/")
NO_LIMIT = 2**60  # bytes; control groups of version 1 state such a limit where there is none


def available(device: torch.device | str = "cpu") -> int | None:
    """Bytes that can still be allocated on `device`; None if unknown.

    On a CPU the system's figure, or that of the process' control groups when that is less; on a GPU what the driver
    reports as free plus what torch's allocator holds unused.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    limits = [group.limit - group.used for group in limited_groups()]
    if "MemAvailable" in (sizes := meminfo()):
        limits.append(sizes["MemAvailable"])
    return min(limits) if limits else None


def require(needed: int, device: torch.device | str, what: str, remedy: str = "") -> None:
    """Raise InputError with both figures, and `remedy`, when `what` needs more bytes than `device` has left."""
    give_back()
    free = available(device)
    if free is not None and needed > free:
        raise InputError(
            f"{what}: about {needed / 2**30:.2f} GiB are needed on {device} and {free / 2**30:.2f} GiB are available"
            + (f"; {remedy}" if remedy else "")
        )


def give_back() -> None:
    """Hand memory that was freed, but that the C library keeps for later, back to the system (glibc; else nothing).

    Reading SmolLM2 (a GGUF file of 98 MB) left 14 MB behind, which counts as used until then.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes; empty where there is none."""
    sizes = {}
    with contextlib.suppress(OSError, ValueError):
        for line in (ROOT / "proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if value.strip().endswith("kB"):
                sizes[name] = int(value.split()[0]) * 1024
    return sizes


def cgroup_limit() -> int | None:
    """The least memory limit of this process' control groups in bytes; None without one."""
    return min((group.limit for group in limited_groups()), default=None)


class LimitedGroup(NamedTuple):
    """A control group with a memory limit: the limit and what counts towards it, in bytes.

    The page cache of files counts as used but is given back under pressure; it is not in `used`.
    """

    limit: int
    used: int


class Version(NamedTuple):
    """Where a version of control groups keeps its figures: folders, names of the files, and a row of memory.stat."""

    folders: tuple[str, ...]
    limit: str
    used: str
    given_back: str


FIRST = Version(("memory",), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
SECOND = Version(("", "unified"), "memory.max", "memory.current", "inactive_file")


def limited_groups() -> list[LimitedGroup]:
    """The control groups, of either version, that this process is in and that limit its memory: every parent counts.

    In a container the paths may be those of the host, which it does not see; its own groups are at the root then.
    """
    with contextlib.suppress(OSError, ValueError):
        lines = (ROOT / "proc/self/cgroup").read_text().splitlines()
        return [group for line in lines for group in _limited_groups(*line.split(":", 2))]
    return []


def _limited_groups(number: str, controllers: str, path: str) -> Iterator[LimitedGroup]:
    """Those of a line of /proc/self/cgroup and its parents; none where the line is not about memory."""
    if "memory" in controllers.split(","):
        version = FIRST
    elif (number, controllers) == ("0", ""):
        version = SECOND
    else:
        return
    parts = [part for part in path.split("/") if part]
    if ".." in parts:  # out of the namespace: only its root can be seen
        parts = []
    for folder in version.folders:
        for depth in range(len(parts), -1, -1):
            group = (ROOT / "sys/fs/cgroup" / folder).joinpath(*parts[:depth])
            with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
                limit = int((group / version.limit).read_text())
                if limit < NO_LIMIT:
                    counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                    used = int((group / version.used).read_text()) - int(counts.get(version.given_back, 0))
                    yield LimitedGroup(limit, used)
