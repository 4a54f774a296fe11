"""`pyprune doctor`: what pyprune runs on here, and what is missing."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyprune.commands.options import add_json, command
from pyprune.commands.output import print_json, print_table, shown
from pyprune.errors import InputError


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "doctor",
        "what pyprune runs on here, and what is missing",
        "Say what pyprune finds here: processor and the instructions that matter, memory, versions, the native library "
        "and which code path it chose, the demonstration model and texts; and for what is missing, how to get it.",
        "pyprune doctor",
        "pyprune doctor --json",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Say what pyprune runs on here, and what is missing."""
    from pyprune.models.demo import DEMO_MODEL, demo_model_path
    from pyprune.ops import gpu, native
    from pyprune.runtime import memory
    from pyprune.scoring.calibration import require_text
    from pyprune.study import machine
    from pyprune.study.page import machine_cells

    found = {
        "machine": machine.describe(),
        "available_memory_bytes": memory.available(),
        "native": native.report(),
        "gpu": gpu.report(),
        "cuda_library": _cuda_library(gpu.CUDA_LIBRARY_PATH),
        "demonstration": {"model": _present(demo_model_path), "texts": _present(lambda: require_text(None))},
    }
    if options.json:
        return print_json(found)
    lines = machine_cells(found["machine"])
    free = found["available_memory_bytes"]
    lines.append(["free memory", "unknown" if free is None else f"{free / 2**30:.1f} GiB"])
    native_facts = {name: value for name, value in found["native"].items() if value not in (None, [], {})}
    for name, reason in native_facts.pop("isas_unused", {}).items():
        native_facts[f"{name}, not used"] = reason
    lines += [[f"native: {name.replace('_', ' ')}", shown(value)] for name, value in native_facts.items()]
    lines.append(["GPU kernels", found["gpu"]["reason"]])
    lines.append(["CUDA library", found["cuda_library"]])
    lines.append([f"model {DEMO_MODEL}", found["demonstration"]["model"] or "installed"])
    lines.append(["demonstration texts", found["demonstration"]["texts"] or "installed"])
    print_table(["", ""], lines)


def _cuda_library(file: Path) -> str:
    """Whether this installation carries the CUDA library, and for which GPUs."""
    import torch

    from pyprune.ops import library_files

    targets = library_files.cuda_targets(file)
    if targets is None:
        return f"none, this installation is for CPUs (and Triton): {library_files.problem(file)}"
    return targets if torch.version.cuda else f"{targets}; never loaded, for this torch has no CUDA"


def _present(find: Callable[[], object]) -> str | None:
    """None when it is there, else why not."""
    try:
        find()
    except InputError as error:
        return str(error)
    return None
