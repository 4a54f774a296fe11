"""Part: the machine, the versions, and what pyprune finds to run on."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from typing import Any

from bench.gpu_check.settings import Save, Settings

PACKAGES = ("triton", "setuptools", "cmake", "ninja", "pytest", "gguf", "rich", "matplotlib", "safetensors")
TOOLS = ("nvcc", "cmake", "ninja", "c++", "compute-sanitizer", "ncu")


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """GPU, CPU, versions, commit; the operators' own reports; which tools and packages are there."""
    from pyprune.study import machine

    result: dict[str, Any] = {"machine": machine.describe()}
    save(result)
    result["packages"] = {name: _version(name) for name in PACKAGES}
    result["tools"] = {name: shutil.which(name) is not None for name in TOOLS}
    result["nvcc"] = _last_line(["nvcc", "--version"])
    save(result)
    from pyprune.ops import native

    return {**result, "native": native.report(), "gpu": gpu_report()}


def gpu_report() -> dict[str, Any]:
    """What `pyprune.ops` runs on a GPU in this process."""
    from pyprune import ops

    return dict(ops.gpu.report())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _last_line(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.strip().splitlines() or [None])[-1]
