"""The machine and the versions a result was measured with, without host names or absolute paths."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from pyprune.runtime.memory import cgroup_limit, meminfo

TELLING_FLAGS = (
    "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
"""CPU flags that decide how fast a matrix-vector product can be."""

PACKAGES = ("pyprune", "torch", "transformers", "numpy")


def describe() -> dict[str, Any]:
    """CPU, memory, system, GPUs, threads, versions and, in a checkout, the commit: what a result must be read with."""
    cpu = _cpu()
    return {
        "cpu": cpu["model"],
        "cpu_flags": cpu["flags"],
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": meminfo().get("MemTotal"),
        "memory_limit_bytes": cgroup_limit(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": commit(Path(__file__).parent),
    }


def commit(folder: Path) -> str | None:
    """The git commit of the checkout that holds this package, "-dirty" added when files differ; None outside of one."""
    root = folder.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return f"{head}-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), "--no-optional-locks", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return getattr(__import__("pyprune"), "__version__", None) if name == "pyprune" else None


def _cpu() -> dict[str, Any]:
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    model = fields.get("model name") or platform.processor() or platform.machine()
    return {"model": model, "flags": [flag for flag in TELLING_FLAGS if flag in flags]}


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in found]
