"""The scripts of the check and their parts, as data, in the order in which they run: most important first."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu_check.settings import ROOT
from pyprune.errors import InputError

BUDGETS = {"install": 100.0, "correct": 150.0, "fast": 120.0, "mission": 150.0, "sweep": 60.0}
"""The scripts, and the seconds that the expected times of each one's parts may add up to, on 16 cores and an H100 or
H200. A machine is lent for fifteen minutes, its starts included, and a command may run for ten."""

MODELS = ("7b", "13b")
"""What `mission` may be asked for: LLaMA-7B's rows of Table 1, or Vicuna-13B's."""


@dataclass(frozen=True)
class Part:
    """One subprocess: its name, the group that the summary knows it by, the seconds that it should take and those after
    which it is stopped.

    `prefix` is what the child runs under; `gpu` False for a part that runs without one. `mode`: PYPRUNE_GPU. Parts of
    one stage run side by side: they check or compile, and do not time.
    `everywhere`: a machine needs its own, so that another machine's is no reason to leave it out.
    """

    name: str
    group: str
    limit_s: float
    kind: str = ""
    expected_s: float = 0.0
    mode: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    gpu: bool = True
    prefix: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    skip: str | None = None
    everywhere: bool = False


Stage = list[Part]

HALVES = ("bfloat16", "float16")
SHARES = {
    "qkv": ("norm_qkv_rope",),
    "gate-up": ("norm_gate_up",),
    "loss": ("linear_cross_entropy",),
    "residual": ("linear_residual",),
    "linear": ("padded_linear",),
    "head-attention": ("norm_head", "decode_attention"),
}
"""How the operators are shared out over 16 cores: their time is the kernels' compilation, one by one in a process."""

DONE, STOPPED = "done", "stopped"
"""The status of a part that came to its end, and of one that was stopped at its limit."""

BEST = "best"
"""The mode of a part that takes the best of the modes that could decode."""

SANITIZED = {"dtype": "bfloat16", "tiny": True}
"""The cases under a sanitizer; the same run before without one, so that it meets compiled kernels."""


def script(name: str, dry_run: bool = False, model: str = "7b", weights: str | None = None) -> list[Stage]:
    """The stages of a script. Times: the three runs on an H100 (bench/results) and, for what those did not have, the
    bytes it moves, 10 s for the start of a process and 2 s for each kernel that it may have to compile."""
    if name == "install":
        why = "a dry run installs nothing" if dry_run else None
        return [[Part("install", "install", 170, "install", 90, gpu=False, skip=why, everywhere=True)]]
    if name == "correct":
        return _correct(dry_run, weights)
    if name == "fast":
        return _fast(dry_run)
    if name == "mission":
        return _mission(dry_run, model)
    if name == "sweep":
        return _sweep(dry_run)
    raise InputError(f"{name}: one or more of {', '.join(BUDGETS)} are expected")


def plan(names: Sequence[str], dry_run: bool = False, model: str = "7b", weights: str | None = None) -> list[Stage]:
    """The stages of several scripts, in the order of their names, no part twice. InputError for an unknown name."""
    stages: list[Stage] = []
    names_so_far: set[str] = set()
    for name in names:
        for stage in script(name, dry_run, model, weights):
            new = [part for part in stage if part.name not in names_so_far]
            names_so_far |= {part.name for part in new}
            if new:
                stages.append(new)
    return stages


def expected_seconds(stages: Sequence[Stage]) -> float:
    """What the stages should take: the parts of a stage run side by side."""
    return sum(max(part.expected_s for part in stage) for stage in stages)


def _machine() -> Stage:
    # Side by side: the one asks the processor, the other the GPU.
    return [
        Part("environment", "environment", 30, "environment", 7, mode="reference", gpu=False, everywhere=True),
        Part("ceilings", "ceilings", 30, "ceilings", 8, mode="reference", everywhere=True),
    ]


def _correct(dry_run: bool, weights: str | None) -> list[Stage]:
    no_weights = None if weights else "no --weights were given"
    # On a CPU all modes are the same: one of them tries the program.
    twin = "a dry run has no GPU, so the other mode's part was the same" if dry_run else None
    why_skipped = "a dry run tries the shares in one dtype" if dry_run else None
    return [
        [
            *(_operators("cuda", dtype) for dtype in HALVES),
            *(_steps("cuda", dtype) for dtype in HALVES),
            *(_operators("triton", "bfloat16", *share) for share in SHARES.items()),
            *(_operators("triton", "float16", *share, skip=why_skipped) for share in SHARES.items()),
            # What the sanitizers will run, so that it is compiled.
            Part("tiny-cases", "operators", 80, "operators", 30, mode=BEST, options=SANITIZED, everywhere=True),
            _machine()[0],
        ],
        [
            *(_sanitizer(tool, dry_run) for tool in ("memcheck", "racecheck")),
            Part("self-check", "self_check", 100, "self_check", 55, everywhere=True),
            # As a user has it: no mode is named.
            Part("steps-auto", "steps", 80, "steps", 25, skip=twin),
            *(_steps("triton", dtype, twin) for dtype in HALVES),
            Part("weights-auto", "weights", 70, "real_model", 45, skip=no_weights),
            *_warm(),
        ],
    ]  # fmt: skip


def _fast(dry_run: bool) -> list[Stage]:
    # Of a dry run all shapes are the same tiny one.
    twin = "a dry run has one tiny shape, so the other part was the same" if dry_run else None
    return [
        _machine(),
        _warm(),
        [_decode("7b", "shape:llama-7b", 30)],
        [Part("masked", "masked", 30, "masked", 13, mode=BEST)],
        [Part("widths", "widths", 40, "widths", 15, mode=BEST)],
        [_decode("1b", "shape:llama-1b", 17, twin)],
        [Part("scoring", "scoring", 45, "scoring", 20, mode=BEST)],
    ]


def _mission(dry_run: bool, model: str) -> list[Stage]:
    large = model == "13b"
    mark, options = ("-13b" if large else ""), {"model": model}
    timed = options if dry_run else {**options, "seconds": 26.0}
    return [
        _machine(),
        [_warmed(f"{kind}{mark}", kind, 18, options) for kind in ("table1", "layer_peer")],
        [Part(f"table1{mark}", "table1", 110, "table1", 60 if large else 40, mode=BEST, options=options)],
        [Part(f"generations{mark}", "generations", 90, "generations", 55 if large else 50, mode=BEST, options=timed)],
        [Part(f"layer_peer{mark}", "layer_peer", 70, "layer_peer", 35 if large else 30, mode=BEST, options=options)],
    ]


def _sweep(dry_run: bool) -> list[Stage]:
    options = {} if dry_run else {"seconds": 36.0}
    return [_machine(), [Part("sweep", "sweep", 80, "width_sweep", 50, mode=BEST, options=options)]]


def _warm() -> Stage:
    """What compiles the kernels of `fast`, one process each."""
    return [
        _warmed("decode-7b", "decode", 16, {"spec": "shape:llama-7b"}),
        _warmed("decode-1b", "decode", 16, {"spec": "shape:llama-1b"}),
        *(_warmed(kind, kind, 16) for kind in ("masked", "widths", "scoring")),
    ]


def _warmed(name: str, kind: str, expected_s: float, options: dict[str, Any] | None = None) -> Part:
    warm_options = {"of": kind, **(options or {})}
    return Part(f"warm-{name}", "warm", 60, "warm", expected_s, mode=BEST, options=warm_options, everywhere=True)


def _operators(
    mode: str, dtype: str, share: str | None = None, operators: Sequence[str] = (), skip: str | None = None
) -> Part:
    name = "-".join(["operators", mode, dtype, *([share] if share else [])])
    few = mode == "cuda"  # one and two rows are what that library is for
    options: dict[str, Any] = {"dtype": dtype, "few_rows": few, "direct": few}
    if share:
        options["operators"] = list(operators)
    return Part(name, "operators", 110, "operators", 60, mode=mode, options=options, skip=skip)


def _steps(mode: str, dtype: str, skip: str | None = None) -> Part:
    options = {"dtypes": [dtype]}
    return Part(f"steps-{mode}-{dtype}", "steps", 110, "steps", 55, mode=mode, options=options, skip=skip)


def _decode(name: str, spec: str, expected_s: float, skip: str | None = None) -> Part:
    return Part(f"decode-{name}", "decode", 60, "decode", expected_s, mode=BEST, options={"spec": spec}, skip=skip)


def _sanitizer(tool: str, dry_run: bool) -> Part:
    path = shutil.which("compute-sanitizer") or _beside_nvcc("compute-sanitizer")
    why = "a dry run has no GPU" if dry_run else None if path else "compute-sanitizer was not found"
    prefix = (str(path), "--tool", tool, "--target-processes", "application-only", "--error-exitcode", "9")
    return Part(
        f"sanitizer-{tool}", "sanitizer", 90, "operators", 60, mode=BEST, options=SANITIZED, prefix=prefix, skip=why
    )


def _beside_nvcc(name: str) -> str | None:
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    nvcc = shutil.which("nvcc")
    homes += [str(Path(nvcc).resolve().parents[1])] if nvcc else []
    candidates = (Path(home) / "bin" / name for home in homes if home)
    return next((str(path) for path in candidates if path.is_file()), None)


def best_mode(done: Sequence[dict[str, Any]]) -> str:
    """The first of cuda and triton under which no decoding failed so far, as far as it is there; else reference."""
    decoded = [part for part in done if part["group"] == "decode" and part["status"] != "skipped"]
    for mode in ("cuda", "triton"):
        tried = [part for part in decoded if part["mode"] == mode]
        timed = [part for part in tried if any("seconds" in line for line in part["result"].get("timings", ()))]
        available = mode == "triton" or any((ROOT / "pyprune").glob("_cuda_*.so"))
        if timed or (available and not tried):
            return mode
    return "reference"


def gpu_question() -> Callable[[], bool]:
    """Asks a fresh process, at once, whether torch finds a GPU; the function waits for the answer."""
    if importlib.util.find_spec("torch") is None:
        return lambda: False
    question = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    process = subprocess.Popen([sys.executable, "-c", question], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return lambda: process.wait(120) == 0
