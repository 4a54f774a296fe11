"""Judging an operator: against its reference in float64, beside what plain PyTorch makes in the same dtype."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyprune import ops
from pyprune.ops.self_check.cases import Case, Draw
from pyprune.triton_kernels.timing import poison

DTYPES = ("bfloat16", "float16", "float32")
TIMES_PYTORCH = 2.0
TINY = {"linear_cross_entropy": 2e-6}
"""Share of the largest value that is allowed beside twice PyTorch's error (1e-6 for the other operators)."""

FEW_VALUES = 256
"""Of fewer values PyTorch's largest error may be small by chance: there it is credited with at least half a unit in the
last place, the rounding of the result alone."""

DIRECT: dict[str, tuple[str, dict[str, Any]]] = {
    "norm_gate_up": ("cuda_norm_gate_up", {}),
    "linear_residual": ("cuda_linear_residual", {}),
    "padded_linear": ("cuda_linear", {}),
    "norm_head": ("cuda_linear", {"float_out": True}),
}
"""The CUDA library's operator for each, and the arguments it has beside those of the same names."""


def count(done: list[dict[str, Any]]) -> dict[str, int]:
    """How many of the cases passed and failed."""
    passed = sum(case["passed"] for case in done)
    return {"passed": passed, "failed": len(done) - passed}


def check(case: Case, dtype: torch.dtype, device: str, seed: int) -> dict[str, Any]:
    """One case: errors relative to the largest true value, their ratio, and whether it passed.

    Passed: finite, of the right shape, at most twice PyTorch's error (plus `TINY`), the same bits twice, and nothing
    written in the caches but at the positions.
    """
    result = blank(case.operator, case.label, dtype, case.direct)
    try:
        result.update(_measure(case, Draw(seed, case.label, dtype, device)))
    except Exception as error:  # every kind: the text is the finding
        result["exception"] = f"{type(error).__name__}: {error}"[:1500]
    return result


def blank(operator: str, label: str, dtype: torch.dtype, direct: bool = False) -> dict[str, Any]:
    """What is told of a case before anything is known."""
    return {
        "operator": operator, "direct": direct, "dtype": str(dtype).removeprefix("torch."), "case": label,
        "passed": False, "error": None, "pytorch_error": None, "ratio": None, "same_bits_twice": None,
        "exception": None,
    }  # fmt: skip


@torch.inference_mode()
def _measure(case: Case, draw: Draw) -> dict[str, Any]:
    args = case.build(draw)
    operator, reference = _operator(case), ops.reference.REFERENCE[case.operator]
    exact = _outputs(case, reference, _double(_seen(case, args)))
    plain = _outputs(case, reference, _seen(case, args))
    poison(exact[0])
    ours = _outputs(case, operator, args)
    poison(exact[0])
    repeated = _outputs(case, operator, args)
    return verdict(ours, repeated, plain, exact, TINY.get(case.operator, 1e-6))


def verdict(
    ours: list[Tensor], repeated: list[Tensor], plain: list[Tensor], exact: list[Tensor], tiny: float = 1e-6
) -> dict[str, Any]:
    """Results of two runs against PyTorch's in the same dtype and the true ones: the errors, and whether they passed.

    AssertionError for another shape, and for NaN anywhere but where the true result has it.
    """
    worst, worst_plain, passed = 0.0, 0.0, True
    for actual, pytorch, true in zip(ours, plain, exact, strict=True):
        untouched = torch.isnan(true)
        if actual.shape != true.shape or not torch.equal(torch.isnan(actual), untouched):
            raise AssertionError(
                f"shape {tuple(actual.shape)} for {tuple(true.shape)}, or NaN where a value belongs, or the reverse"
            )
        dtype = actual.dtype
        actual, pytorch, true = (t.double()[~untouched] for t in (actual, pytorch, true))
        if not true.numel():
            continue
        scale = float(true.abs().max()) or 1.0
        error, error_plain = (float((t - true).abs().max()) / scale for t in (actual, pytorch))
        passed &= error <= TIMES_PYTORCH * max(error_plain, _rounding_error(dtype, true)) + tiny
        worst, worst_plain = max(worst, error), max(worst_plain, error_plain)
    same = all(_same_bits(result, repetition) for result, repetition in zip(ours, repeated, strict=True))
    return {
        "error": worst,
        "pytorch_error": worst_plain,
        "ratio": worst / worst_plain if worst_plain else None,
        "same_bits_twice": same,
        "passed": bool(passed and same),
    }


def _rounding_error(dtype: torch.dtype, values: Tensor) -> float:
    """The least error that PyTorch is credited with, as a share of the largest value."""
    return torch.finfo(dtype).eps / 2 if values.numel() < FEW_VALUES else 0.0


def direct(case: Case) -> list[Case]:
    """The same case for the CUDA library's own operator, if it has one for this: then no dispatch lies between."""
    if case.operator not in DIRECT or not hasattr(torch.ops.pyprune, DIRECT[case.operator][0]):
        return []
    return [replace(case, direct=True)]


def _operator(case: Case) -> Any:
    general = getattr(ops, case.operator)
    if not case.direct:
        return general
    name, extra = DIRECT[case.operator]
    cuda_operator = getattr(torch.ops.pyprune, name).default
    names = [argument.name for argument in general._schema.arguments]
    accepted = {argument.name for argument in cuda_operator._schema.arguments}

    def call(*args: Any) -> Any:
        by_name = dict(zip(names, args, strict=False))
        return cuda_operator(**{name: value for name, value in by_name.items() if name in accepted}, **extra)

    return call


def _outputs(case: Case, function: Any, args: list[Any]) -> list[Tensor]:
    """What the operator gives, and the caches that it wrote; the arguments stay as they were."""
    args = [value.clone() if place in case.caches else value for place, value in enumerate(args)]
    return [function(*args), *(args[place] for place in case.caches)]


def _seen(case: Case, args: list[Any]) -> list[Any]:
    """For the reference of attention, which multiplies hidden rows by zero: NaN becomes a number there."""
    if case.operator != "decode_attention":
        return args
    return [value.nan_to_num() if place in (1, 2) else value for place, value in enumerate(args)]


def _double(args: list[Any]) -> list[Any]:
    return [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in args]


def _same_bits(left: Tensor, right: Tensor) -> bool:
    is_nan = torch.isnan(left)
    return torch.equal(is_nan, torch.isnan(right)) and torch.equal(left[~is_nan], right[~is_nan])
