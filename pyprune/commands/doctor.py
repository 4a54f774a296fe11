"""`pyprune doctor`: what pyprune runs on here, and what is missing."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pyprune.commands.options import add_json, command
from pyprune.commands.output import Bar, print_json, print_table, shown
from pyprune.errors import InputError

MOST_SHOWN = 8  # failures


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "doctor",
        "show the kernels in use on this machine and what is missing",
        "Show what pyprune finds on this machine: CPU and instruction sets, memory, versions, native libraries, the "
        "kernels in use on CPU and GPUs, the demonstration model and texts. Say how to get what is missing.",
        "pyprune doctor",
        "pyprune doctor --json",
        "pyprune doctor --gpu",
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="check the GPU kernels on every GPU, for at most 90 seconds each; pyprune then uses them on every GPU "
        "that passes (default: off)",
    )
    parser.add_argument(
        "--device",
        type=gpu_number,
        metavar="N",
        help="with --gpu: check only GPU N, counted from 0 (default: every GPU)",
    )
    add_json(parser)


def gpu_number(text: str) -> int:
    """A GPU's number, as N or cuda:N."""
    digits = text.removeprefix("cuda:")
    if not (digits.isascii() and digits.isdigit()):
        raise argparse.ArgumentTypeError(f"{text}: a GPU number such as 0 or cuda:0 is expected")
    return int(digits)


def run(options: argparse.Namespace) -> None:
    """Say what pyprune runs on here, and what is missing; with --gpu check the GPU kernels."""
    if options.device is not None and not options.gpu:
        raise InputError(f"--device {options.device}: needs --gpu")
    if options.gpu:
        return check_gpus(options.device, options.json)
    from pyprune.models.demo import DEMO_MODEL, demo_model_path
    from pyprune.ops import gpu, native
    from pyprune.runtime import memory
    from pyprune.scoring.calibration import require_text
    from pyprune.study import machine
    from pyprune.study.page import machine_cells

    facts: dict[str, Any] = {
        "machine": machine.describe(),
        "available_memory_bytes": memory.available(),
        "native": native.report(),
        "gpu": gpu.report(),
        "cuda_library": _cuda_library(gpu.CUDA_LIBRARY_PATH),
        "demonstration": {"model": _present(demo_model_path), "texts": _present(lambda: require_text(None))},
    }
    if options.json:
        return print_json(facts)
    lines = machine_cells(facts["machine"])
    free = facts["available_memory_bytes"]
    lines.append(["free memory", "unknown" if free is None else f"{free / 2**30:.1f} GiB"])
    native_facts = {name: value for name, value in facts["native"].items() if value not in (None, [], {})}
    for name, reason in native_facts.pop("isas_unused", {}).items():
        native_facts[f"{name}, not used"] = reason
    lines += [[f"native: {name.replace('_', ' ')}", shown(value)] for name, value in native_facts.items()]
    for device in facts["gpu"]["devices"]:
        lines.append([f"GPU kernels, {device['device']} ({device['name']})", device["reason"]])
    if not facts["gpu"]["devices"]:
        lines.append(["GPU kernels", facts["gpu"]["reason"]])
    lines.append(["CUDA library", facts["cuda_library"]])
    lines.append([f"model {DEMO_MODEL}", facts["demonstration"]["model"] or "installed"])
    lines.append(["demonstration texts", facts["demonstration"]["texts"] or "installed"])
    print_table(["", ""], lines)


def _cuda_library(file: Path) -> str:
    """Whether this installation carries the CUDA library, and for which GPUs."""
    import torch

    from pyprune.ops import library_files

    targets = library_files.cuda_targets(file)
    if targets is None:
        return f"none: {library_files.problem(file)}; GPUs use Triton alone"
    return targets if torch.version.cuda else f"{targets}; not loaded: this torch has no CUDA"


def check_gpus(number: int | None, as_json: bool) -> None:
    """Check the GPU kernels on one GPU or on each; SystemExit 1 where they did not pass on all of them."""
    import torch

    from pyprune.ops import gpu
    from pyprune.runtime.self_check.run import self_check

    gpu.require_triton("doctor --gpu")
    count = torch.cuda.device_count()
    if number is not None and number >= count:
        raise InputError(f"--device {number}: a GPU from 0 to {count - 1} is expected")
    verdicts = []
    for index in range(count) if number is None else (number,):
        with Bar() as bar:
            verdicts.append(self_check(torch.device("cuda", index), report=partial(bar, f"checking cuda:{index}")))
        if not as_json:
            print("\n".join(verdict_lines(verdicts[-1])))
    if as_json:
        print_json({"self_checks": verdicts})
    if not all(verdict["passed"] for verdict in verdicts):
        raise SystemExit(1)


def verdict_lines(verdict: dict[str, Any]) -> list[str]:
    """A verdict of the self-check in lines."""
    done = f"{verdict['done']} of {verdict['of']} cases in {verdict['seconds']:.0f} s"
    where = f"{verdict['device']} ({verdict['gpu']})"
    if verdict["passed"]:
        return [f"{where}: passed, {done}. From now on pyprune uses its kernels ({verdict['kernels']}) on this GPU."]
    failures = verdict["failures"]
    lines = [f"  {failure['case']}: {_failure(failure)}" for failure in failures[:MOST_SHOWN]]
    lines += [f"  and {len(failures) - MOST_SHOWN} more (--json has all)"] * (len(failures) > MOST_SHOWN)
    if failures:
        return [
            f"{where}: FAILED, {len(failures)} of {done}. PYPRUNE_GPU=reference runs plain PyTorch instead.", *lines
        ]  # fmt: skip
    return [
        f"{where}: not finished, {done}; no failure so far. Run it again: compiled kernels are kept, so it gets "
        "further."
    ]


def _failure(failure: dict[str, Any]) -> str:
    if failure.get("exception"):
        return " ".join(str(failure["exception"]).split())
    if not failure.get("same_bits_twice", True):
        return "different bits in a second run"
    return f"error {failure['error']}, PyTorch's {failure['pytorch_error']} (relative to the largest value)"


def _present(find: Callable[[], object]) -> str | None:
    """None when it is there, else why not."""
    try:
        find()
    except InputError as error:
        return str(error)
    return None
