"""How much memory a device still has, and refusing work that will not fit before it starts."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import torch

from pyprune.errors import InputError


def available(device: torch.device | str = "cpu") -> int | None:
    """Bytes that can still be allocated on `device`; None if unknown.

    On a CPU the system's figure, or the control group's when that is less; on a GPU what the driver reports as free
    plus what torch's allocator holds unused.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    limits = []
    if "MemAvailable" in (sizes := meminfo()):
        limits.append(sizes["MemAvailable"])
    limit = cgroup_limit()
    if limit is not None:
        with contextlib.suppress(OSError, ValueError):
            group = Path("/sys/fs/cgroup")
            used = int((group / "memory.current").read_text())
            # The page cache of files counts as used but is given back under pressure.
            counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            limits.append(limit - used + int(counts.get("inactive_file", 0)))
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
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if value.strip().endswith("kB"):
                sizes[name] = int(value.split()[0]) * 1024
    return sizes


def cgroup_limit() -> int | None:
    """The control group's memory limit in bytes; None without one."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no control group, or "max"
        return None
