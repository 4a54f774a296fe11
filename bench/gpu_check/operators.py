"""Part: every operator against its reference in float64, beside what plain PyTorch makes in the same dtype."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.gpu_check.environment import gpu_report
from bench.gpu_check.settings import Save, Settings
from pyprune.errors import InputError
from pyprune.files import read_json
from pyprune.ops.self_check.cases import cases
from pyprune.ops.self_check.judgement import DTYPES, check, count, direct

MOST_RESTARTS = 6


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """Every case of the dtype(s) asked for; a case that fails, or breaks the device, does not stop the others."""
    options = settings.options
    size = "tiny" if settings.dry_run or options.get("tiny") else "full"
    dtypes = DTYPES if options["dtype"] == "all" else (options["dtype"],)
    todo = [(dtype, case) for dtype in dtypes for case in cases(settings.seed, size, options.get("few_rows", False))]
    if "operators" in options:
        todo = [(dtype, case) for dtype, case in todo if case.operator in options["operators"]]
    if options.get("direct") and not settings.dry_run:
        todo += [(dtype, twin) for dtype, case in todo for twin in direct(case)]
    start = options.get("first", 0)
    result: dict[str, Any] = {"gpu": gpu_report(), "cases": _kept(settings) if start else [], "of": len(todo)}
    for number, (dtype, case) in enumerate(todo[start:], start=start + 1):
        # Kept before every case: if one hangs, the part is stopped, and this names it.
        save({**result, "trying": f"{dtype} {case.operator}{' (direct)' * case.direct} {case.label}"})
        result["cases"].append(check(case, getattr(torch, dtype), settings.device, settings.seed))
        result.update(count(result["cases"]))
        if result["cases"][-1]["exception"] is not None and not _device_works(settings.device):
            save(result)
            _begin_again(settings, number)
    return result


def _device_works(device: str) -> bool:
    if device == "cpu":
        return True
    try:
        torch.ones(8, device=device).sum().item()
    except RuntimeError:
        return False
    return True


def _kept(settings: Settings) -> list[dict[str, Any]]:
    try:
        return read_json(Path(settings.out))["result"]["cases"]
    except InputError:
        return []


def _begin_again(settings: Settings, start: int) -> None:
    """Go on with the next case in a fresh image of this process: after a bad access a CUDA context serves no more."""
    restarts = settings.options.get("restarts", 0) + 1
    if restarts > MOST_RESTARTS:
        raise RuntimeError(f"the device failed {restarts} times; the cases from {start} on were not tried")
    restarted = replace(settings, options={**settings.options, "first": start, "restarts": restarts})
    os.execv(sys.executable, [sys.executable, "-m", "bench.gpu_check.child", restarted.to_json()])
