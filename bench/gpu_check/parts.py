"""The parts of the check, as data, in the order in which they run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu_check.settings import ROOT
from pyprune.errors import InputError


@dataclass(frozen=True)
class Part:
    """One subprocess: its name, the group that `--only` knows it by, and the seconds after which it is stopped.

    `command` in place of our own child; `prefix` is what the child runs under; `gpu` False for a part that runs
    without one. `mode`: PYPRUNE_GPU. Parts of one stage run side by side.
    """

    name: str
    group: str
    limit_s: float
    kind: str = ""
    mode: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    gpu: bool = True
    prefix: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    skip: str | None = None


# Several threads only where there is a core for each: threads that wait for a busy core take minutes.
CPU_ALONE = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "4" if (os.cpu_count() or 1) >= 8 else "1"}

DTYPES = ("bfloat16", "float16", "float32")
SHARES = {
    "qkv": ("norm_qkv_rope",),
    "gate-up": ("norm_gate_up", "linear_cross_entropy"),
    "others": ("linear_residual", "padded_linear", "norm_head", "decode_attention"),
}
"""How the operators are shared out: their time is the kernels' compilation, which one process does one by one."""

WARM = ("decode", "scoring", "table1, even", "table1, odd")
"""What `warm` is asked for, one process each."""

DONE, STOPPED = "done", "stopped"
"""The status of a part that came to its end, and of one that was stopped at its limit."""

BEST = "best"
"""The mode of a part that takes the best of the modes that could decode."""


def stages(dry_run: bool, model: str | None) -> list[list[Part]]:
    """All parts; the parts of an inner list run at the same time (they check, and do not time)."""
    no_model = None if model else "no --model was given"
    # On a CPU all modes are the same: one of them tries the program.
    twin = "a dry run has no GPU, so the other mode's part was the same" if dry_run else None
    return [
        [Part("install", "install", 170, "install", gpu=False, skip="a dry run installs nothing" if dry_run else None)],
        [Part("environment", "environment", 30, "environment", mode="definitions", gpu=False)],
        [
            *(_operators("triton", dtype, *share) for dtype in DTYPES for share in SHARES.items()),
            _operators("cuda", "all"),
            # Without a visible GPU: these tests are about the CPU's kernels alone. The others compile meanwhile.
            Part("cpu-operators", "cpu", 110, "cpu_operators", gpu=False, env=CPU_ALONE),
            *(
                Part(f"warm-{share.replace(', ', '-')}", "warm", 110, "warm", mode=BEST, options={"share": share})
                for share in WARM
            ),
        ],
        [Part("ceilings", "ceilings", 30, "ceilings", mode="definitions")],
        [
            # As a user has it: no mode is named. The engine's steps are recorded, so this compares recorded ones too.
            Part("model-auto", "model", 60, "real_model", skip=no_model or twin),
            Part("model-cuda", "model", 60, "real_model", mode="cuda", skip=no_model),
            Part("model-triton", "model", 60, "real_model", mode="triton", skip=no_model or twin),
            Part("model-definitions", "model", 60, "real_model", mode="definitions", skip=no_model or twin),
        ],
        [Part("decode-cuda", "decode", 90, "decode", mode="cuda")],
        [Part("skipping", "skipping", 45, "skipping", mode=BEST)],
        [Part("scoring-triton", "scoring", 45, "scoring", mode="triton")],
        [Part("table1", "table1", 150, "table1", mode=BEST)],
        [_sanitizer(tool, dry_run) for tool in ("memcheck", "racecheck")],
        [Part("compiled", "compiled", 120, "compiled", mode=BEST)],
        [Part("profile", "profile", 40, "profile", mode=BEST)],
        [Part("attention-triton", "attention", 30, "attention", mode="triton")],
        [Part("decode-triton", "decode", 90, "decode", mode="triton", skip=twin)],
        # Last, because they say least: if time runs out, it is these that go.
        [Part("decode-definitions", "decode", 60, "decode", mode="definitions", skip=twin)],
        [Part("scoring-definitions", "scoring", 45, "scoring", mode="definitions", skip=twin)],
    ]


def groups() -> list[str]:
    """The names that `--only` takes, in order."""
    return list(dict.fromkeys(part.group for stage in stages(False, None) for part in stage))


def chosen(only: Sequence[str] | None, dry_run: bool, model: str | None) -> list[list[Part]]:
    """The stages with the parts that `only` names by group or by themselves (all of them for None); InputError for an
    unknown name."""
    every = stages(dry_run, model)
    known = {*groups(), *(part.name for stage in every for part in stage)}
    for name in only or ():
        if name not in known:
            raise InputError(f"--only {name}: one or more of {','.join(groups())}, or of their parts, are expected")
    kept = [[part for part in stage if only is None or {part.group, part.name} & set(only)] for stage in every]
    return [stage for stage in kept if stage]


def best_mode(done: Sequence[dict[str, Any]]) -> str:
    """The first of cuda and triton that decoded all that it came to, or was not tried yet; else definitions. From the
    results of the parts so far.

    If no decoding was tried, what has been built decides.
    """
    decoded = [part for part in done if part["group"] == "decode" and part["status"] != "skipped"]
    has_library = any((ROOT / "pyprune").glob("_cuda_*.so"))
    if not decoded:
        return "cuda" if has_library else "triton"
    for mode in ("cuda", "triton"):
        tried = [part for part in decoded if part["mode"] == mode]
        timings = [part["result"].get("timings") or [{}] for part in tried if part["status"] in (DONE, STOPPED)]
        untried = not tried and (mode == "triton" or has_library)
        if untried or any(all("pyprune_share" in one for one in found) for found in timings):
            return mode
    return "definitions"


def _operators(mode: str, dtype: str, share: str | None = None, operators: Sequence[str] = ()) -> Part:
    name = "-".join(["operators", mode, *([dtype] if dtype != "all" else []), *([share] if share else [])])
    few = mode == "cuda"  # one and two rows are what that library is for
    options: dict[str, Any] = {"dtype": dtype, "few_rows": few, "direct": few}
    if share:
        options["operators"] = list(operators)
    return Part(name, "operators", 110, "operators", mode=mode, options=options)


def _sanitizer(tool: str, dry_run: bool) -> Part:
    path = shutil.which("compute-sanitizer") or _beside_nvcc("compute-sanitizer")
    why = "a dry run has no GPU" if dry_run else None if path else "compute-sanitizer was not found"
    prefix = (str(path), "--tool", tool, "--target-processes", "application-only", "--error-exitcode", "9")
    return Part(
        f"sanitizer-{tool}", "sanitizer", 75, "operators", mode=BEST, options={"dtype": "bfloat16", "sanitized": True},
        prefix=prefix, skip=why,
    )  # fmt: skip


def _beside_nvcc(name: str) -> str | None:
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    nvcc = shutil.which("nvcc")
    homes += [str(Path(nvcc).resolve().parents[1])] if nvcc else []
    found = (Path(home) / "bin" / name for home in homes if home)
    return next((str(path) for path in found if path.is_file()), None)


def has_gpu() -> bool:
    """Whether torch finds a GPU; asked of a fresh process, so that this one needs no torch."""
    import subprocess

    if importlib.util.find_spec("torch") is None:
        return False
    question = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", question], capture_output=True, timeout=120).returncode == 0
