"""Part: every operator against its definition in float64, beside what plain PyTorch makes in the same dtype."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gpu_check.cases import Case, Draw, cases
from bench.gpu_check.environment import gpu_report
from bench.gpu_check.settings import Save, Settings
from pyprune import ops
from pyprune.errors import InputError
from pyprune.files import read_json
from pyprune.triton_kernels.timing import poison

DTYPES = ("bfloat16", "float16", "float32")
TIMES_PYTORCH = 2.0
TINY = {"linear_cross_entropy": 2e-6}
"""Share of the largest value that is allowed beside twice PyTorch's error (1e-6 for the other operators)."""

DIRECT: dict[str, tuple[str, dict[str, Any]]] = {
    "norm_gate_up": ("cuda_norm_gate_up", {}),
    "linear_residual": ("cuda_linear_residual", {}),
    "padded_linear": ("cuda_linear", {}),
    "norm_head": ("cuda_linear", {"float_out": True}),
}
"""The CUDA library's operator for each, and the arguments it has beside those of the same names."""

MOST_RESTARTS = 6


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """Every case of the dtype(s) asked for; a case that fails, or breaks the device, does not stop the others."""
    options = settings.options
    size = "tiny" if settings.dry_run or options.get("sanitized") else "full"
    dtypes = DTYPES if options["dtype"] == "all" else (options["dtype"],)
    todo = [(dtype, case) for dtype in dtypes for case in cases(settings.seed, size, options.get("few_rows", False))]
    if "operators" in options:
        todo = [(dtype, case) for dtype, case in todo if case.operator in options["operators"]]
    if options.get("direct") and not settings.dry_run:
        todo += [(dtype, twin) for dtype, case in todo for twin in direct(case)]
    first = options.get("first", 0)
    result: dict[str, Any] = {"gpu": gpu_report(), "cases": _kept(settings) if first else [], "of": len(todo)}
    for number, (dtype, case) in enumerate(todo[first:], start=first + 1):
        # Kept before every case: if one hangs, the part is stopped, and this names it.
        save({**result, "trying": f"{dtype} {case.operator}{' (direct)' * case.direct} {case.label}"})
        result["cases"].append(check(case, getattr(torch, dtype), settings.device, settings.seed))
        result.update(count(result["cases"]))
        if result["cases"][-1]["exception"] is not None and not _device_works(settings.device):
            save(result)
            _begin_again(settings, number)
    return result


def count(done: list[dict[str, Any]]) -> dict[str, int]:
    """How many of the cases passed and failed."""
    passed = sum(case["passed"] for case in done)
    return {"passed": passed, "failed": len(done) - passed}


def check(case: Case, dtype: torch.dtype, device: str, seed: int) -> dict[str, Any]:
    """One case: errors relative to the largest true value, their ratio, and whether it passed.

    Passed: finite, of the right shape, at most twice PyTorch's error (plus a stated trifle), the same bits twice, and
    nothing written in the caches but at the positions.
    """
    told = {
        "operator": case.operator, "direct": case.direct, "dtype": str(dtype).removeprefix("torch."),
        "case": case.label, "passed": False, "error": None, "pytorch_error": None, "ratio": None,
        "same_bits_twice": None, "exception": None,
    }  # fmt: skip
    try:
        told.update(_measure(case, Draw(seed, case.label, dtype, device)))
    except Exception as error:  # every kind: the text is the finding
        told["exception"] = f"{type(error).__name__}: {error}"[:1500]
    return told


@torch.inference_mode()
def _measure(case: Case, draw: Draw) -> dict[str, Any]:
    args = case.build(draw)
    operator, definition = _operator(case), ops.definitions.DEFINITIONS[case.operator]
    exact = _outputs(case, definition, _double(_seen(case, args)))
    plain = _outputs(case, definition, _seen(case, args))
    poison(exact[0])
    ours = _outputs(case, operator, args)
    poison(exact[0])
    again = _outputs(case, operator, args)
    worst, worst_plain, passed = 0.0, 0.0, True
    for mine, theirs, true in zip(ours, plain, exact, strict=True):
        untouched = torch.isnan(true)
        if mine.shape != true.shape or not torch.equal(torch.isnan(mine), untouched):
            raise AssertionError(
                f"shape {tuple(mine.shape)} for {tuple(true.shape)}, or NaN where a value belongs, or the reverse"
            )
        mine, theirs, true = (t.double()[~untouched] for t in (mine, theirs, true))
        if not true.numel():
            continue
        scale = float(true.abs().max()) or 1.0
        error, error_plain = (float((t - true).abs().max()) / scale for t in (mine, theirs))
        passed &= error <= TIMES_PYTORCH * error_plain + TINY.get(case.operator, 1e-6)
        worst, worst_plain = max(worst, error), max(worst_plain, error_plain)
    same = all(_same_bits(one, other) for one, other in zip(ours, again, strict=True))
    return {
        "error": worst,
        "pytorch_error": worst_plain,
        "ratio": worst / worst_plain if worst_plain else None,
        "same_bits_twice": same,
        "passed": bool(passed and same),
    }


def direct(case: Case) -> list[Case]:
    """The same case for the CUDA library's own operator, if it has one for this: then no dispatch lies between."""
    if case.operator not in DIRECT or not hasattr(torch.ops.pyprune, DIRECT[case.operator][0]):
        return []
    return [replace(case, direct=True)]


def _operator(case: Case) -> Any:
    general = getattr(ops, case.operator)
    if not case.direct:
        return general
    name, more = DIRECT[case.operator]
    own = getattr(torch.ops.pyprune, name).default
    names = [argument.name for argument in general._schema.arguments]
    taken = {argument.name for argument in own._schema.arguments}

    def call(*args: Any) -> Any:
        given = dict(zip(names, args, strict=False))
        return own(**{name: value for name, value in given.items() if name in taken}, **more)

    return call


def _outputs(case: Case, function: Any, args: list[Any]) -> list[Tensor]:
    """What the operator gives, and the caches that it wrote; the arguments stay as they were."""
    args = [value.clone() if place in case.caches else value for place, value in enumerate(args)]
    return [function(*args), *(args[place] for place in case.caches)]


def _seen(case: Case, args: list[Any]) -> list[Any]:
    """For the definition of attention, which multiplies hidden rows by zero: NaN becomes a number there."""
    if case.operator != "decode_attention":
        return args
    return [value.nan_to_num() if place in (1, 2) else value for place, value in enumerate(args)]


def _double(args: list[Any]) -> list[Any]:
    return [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in args]


def _same_bits(one: Tensor, other: Tensor) -> bool:
    gone = torch.isnan(one)
    return torch.equal(gone, torch.isnan(other)) and torch.equal(one[~gone], other[~gone])


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


def _begin_again(settings: Settings, first: int) -> None:
    """Go on with the next case in a fresh image of this process: after a bad access a CUDA context serves no more."""
    restarts = settings.options.get("restarts", 0) + 1
    if restarts > MOST_RESTARTS:
        raise RuntimeError(f"the device failed {restarts} times; the cases from {first} on were not tried")
    told = replace(settings, options={**settings.options, "first": first, "restarts": restarts})
    os.execv(sys.executable, [sys.executable, "-m", "bench.gpu_check.child", told.to_json()])
