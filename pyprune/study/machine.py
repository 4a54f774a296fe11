"""The machine and the versions a result was measured with, without host names or absolute paths."""

from __future__ import annotations

import contextlib
import importlib.metadata
import mmap
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from pyprune.ops import native
from pyprune.runtime.memory import cgroup_limit, meminfo

SHOWN_FLAGS = (
    "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
"""CPU flags that decide how fast a matrix-vector product can be."""

PACKAGES = ("pyprune", "torch", "transformers", "numpy")
GPU_PACKAGES = ("triton",)
"""Named only where there is a GPU."""


def describe() -> dict[str, Any]:
    """CPU, memory, system, GPUs, threads, kernels, versions and, in a checkout, the commit: what a result must be read
    with."""
    cpu, gpus = _cpu(), _gpus()
    versions = {name: version(name) for name in (*PACKAGES, *(GPU_PACKAGES if gpus else ()))}
    if gpus:
        versions["CUDA"] = torch.version.cuda
    return {
        "cpu": cpu["model"],
        "cpu_flags": cpu["flags"],
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "threads": torch.get_num_threads(),
        "kernels": kernels(),
        "memory_bytes": meminfo().get("MemTotal"),
        "memory_limit_bytes": cgroup_limit(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "gpus": gpus,
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit(Path(__file__).resolve().parents[1]),
    }


def lasting(here: dict[str, Any]) -> dict[str, Any]:
    """What of a machine (`describe`) must be the same for times to be comparable. Older results name no kernels."""
    names = ("cpu", "cpu_flags", "usable_cores", "threads", "gpus", "versions", "commit")
    clocks = {"sm_clock_mhz", "memory_clock_mhz"}  # of this moment
    kept = {name: here[name] for name in names}
    if "kernels" in here:
        kept["kernels"] = here["kernels"]
    kept["gpus"] = [{name: value for name, value in gpu.items() if name not in clocks} for gpu in here["gpus"]]
    return kept


def kernels() -> dict[str, Any]:
    """Which code runs on the CPU: the instruction set in use, whether the compiled library is loaded (if not, `reason`
    says why, and the reference implementations run), what does GEMMs and for which dtypes it is our own, and whether
    weights lie on huge pages."""
    reason = native.report()["reason"]
    return {
        "library_loaded": native.selected_isa() is not None,
        "reason": None if reason is None else str(reason).replace(f"{native.LIBRARY_PATH.parent}{os.sep}", ""),
        "instruction_set": native.selected_isa(),
        "gemm": os.environ.get("PYPRUNE_GEMM") or "auto",
        "own_gemm_for": [str(d).removeprefix("torch.") for d in native.HALF_PRECISION if native.has_own_gemm(d)],
        "huge_pages": _huge_pages(),
    }


def _huge_pages() -> bool:
    """Whether the system gives huge pages to who asks for them, and PYPRUNE_HUGE_PAGES does not forbid to."""
    if not hasattr(mmap, "MADV_HUGEPAGE") or os.environ.get("PYPRUNE_HUGE_PAGES") == "0":
        return False
    try:
        return "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return False


def device_name(here: dict[str, Any], device: str) -> str:
    """What a result's setting `device` was on its machine (`describe`): the GPU of that index, or the CPU and its
    threads. The setting itself where the machine lists no such GPU."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return f"{here['cpu']}, {here['threads']} thread{'s' if here['threads'] > 1 else ''}"
    place = int(index or 0)
    return here["gpus"][place]["name"] if place < len(here["gpus"]) else device


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


def version(name: str) -> str | None:
    """The installed version of a package, None where it is not."""
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
    return {"model": model, "flags": [flag for flag in SHOWN_FLAGS if flag in flags]}


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _gpus() -> list[dict[str, Any]]:
    """Every GPU that torch sees; driver and clocks (MHz) where nvidia-smi reports them."""
    if not torch.cuda.is_available():
        return []
    gpus = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": gpu.name,
                "memory_bytes": gpu.total_memory,
                "compute_capability": f"{gpu.major}.{gpu.minor}",
                "multiprocessors": gpu.multi_processor_count,
                **nvidia_smi(str(gpu.uuid)),
            }
        )
    return gpus


_SMI_FIELDS = {
    "driver_version": "driver",
    "clocks.sm": "sm_clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "clocks.max.sm": "max_sm_clock_mhz",
    "clocks.max.mem": "max_memory_clock_mhz",
    "power.limit": "power_limit_w",
}


def nvidia_smi(uuid: str) -> dict[str, str]:
    """What nvidia-smi says of the GPU with this UUID (which itself is left out); empty without nvidia-smi."""
    command = ["nvidia-smi", f"--id=GPU-{uuid.removeprefix('GPU-')}", f"--query-gpu={','.join(_SMI_FIELDS)}"]
    try:
        done = subprocess.run(
            [*command, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if len(values) != len(_SMI_FIELDS):
        return {}
    return dict(zip(_SMI_FIELDS.values(), values, strict=True))
