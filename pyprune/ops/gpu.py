"""Which implementation of the operators runs on a GPU.

`PYPRUNE_GPU=auto|reference|triton|cuda`: the reference implementations; the Triton kernels; the Triton kernels and, for
one or two rows, those of the CUDA library. `auto` takes the last of these that is there, where the kernels were
checked: on hardware of this kind (`CHECKED_ON`), or on this very GPU by `pyprune doctor --gpu` (`self_check.passes`);
on other GPUs the reference implementations, and says so once. Each GPU has a choice of its own, made when an operator
first meets a tensor there, so that importing pyprune touches none. With the Triton kernels the configurations that
`pyprune tune` measured are taken from its file, if there is one (`pyprune.triton_kernels.tuning`).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.ops import library_files, results
from pyprune.ops.operators import CUDA_OPERATORS, OPERATORS
from pyprune.ops.reference import REFERENCE
from pyprune.ops.registration import LIBRARY
from pyprune.ops.self_check import passes
from pyprune.ops.self_check.passes import CUDA_LIBRARY_PATH
from pyprune.ops.specification import Route

CHOICES = ("auto", "reference", "triton", "cuda")
RENAMED = {"definitions": "reference"}  # accepted for one release
CHECKED_ON = {9: "NVIDIA H100 (compute capability 9.0)"}
"""By the first number of the compute capability: the GPUs on which the operators were checked (docs/status.md)."""

KERNELS = tuple(name for name, operator in OPERATORS.items() if "gpu" in operator.kernels)
"""The operators with Triton kernels."""

MOST_CUDA_ROWS = 2
NO_GPU = "no GPU that this torch can use (it takes an NVIDIA driver and a CUDA build of torch)"

Functions = dict[str, Callable[..., Tensor]]


@dataclass(frozen=True)
class Choice:
    """What runs on a GPU, and why it is not more than that; the functions where `auto` chose."""

    kernels: str
    why: str = ""
    functions: Functions = field(default_factory=dict)


_named = "reference"  # what runs on every GPU; `auto`: what `_choices` has
_choices: dict[int, Choice] = {}  # of `auto`, by the device's number
_tuning: dict[str, object] | None = None
_deciding = threading.Lock()


def choose() -> None:
    """Register what `PYPRUNE_GPU` names, if there is a GPU. InputError for an unknown name or one that cannot run, and
    for a file of tuned configurations that is not sound (for `auto` when it decides)."""
    global _named
    wanted = os.environ.get("PYPRUNE_GPU", "auto")
    if wanted in RENAMED:
        warnings.warn(f"PYPRUNE_GPU={wanted} is now {RENAMED[wanted]}", DeprecationWarning, stacklevel=2)
        wanted = RENAMED[wanted]
    if wanted not in CHOICES:
        raise InputError(f"PYPRUNE_GPU={wanted}: one of {', '.join(CHOICES)} is expected")
    if not torch.cuda.is_available() or wanted == "reference":
        return
    if wanted == "auto":
        functions: Functions = {name: partial(_as_decided, name) for name in KERNELS}
    else:
        functions = _take(wanted)
    _named = wanted
    for name, function in functions.items():
        LIBRARY.impl(name, function, "CUDA")


def _as_decided(name: str, *args: Any, **options: Any) -> Tensor:
    choice = choice_for(args[0].device)
    if args[0].dtype == torch.float64:  # only the reference implementations compute in it
        return REFERENCE[name](*args, **options)
    return choice.functions[name](*args, **options)


def choice_for(device: torch.device) -> Choice:
    """What runs on a CUDA device; under `auto` it is decided at the first call, which looks at the GPU."""
    if _named != "auto":
        return Choice(_named)
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _choices:
        _decide(index)
    return _choices[index]


def _kernels_on(device: torch.device) -> str:
    return choice_for(device).kernels


# A tracing compiler may meet it first, and knows no locks. `torch.compiler.assume_constant_result` sets this mark too,
# but imports the compiler, which takes as long as importing torch.
_kernels_on._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _decide(index: int) -> None:
    with _deciding:
        if index in _choices:
            return
        wanted, why = _best_on(index)
        if wanted == "reference":
            warnings.warn(
                f"pyprune: plain PyTorch runs on cuda:{index} in place of pyprune's kernels: {why} "
                "(PYPRUNE_GPU=reference silences this)",
                stacklevel=4,
            )
        functions = REFERENCE if wanted == "reference" else _take(wanted)
        _choices[index] = Choice(wanted, why, functions)  # last: from now on nobody waits


def _best_on(index: int) -> tuple[str, str]:
    """The choice for a device, and why it is not more than that."""
    kernels = importlib.import_module("pyprune.triton_kernels")
    if not kernels.available():
        return "reference", kernels.why_not()
    best, why = best_available()
    major, _ = torch.cuda.get_device_capability(index)
    if major in CHECKED_ON:
        return best, why
    passed, reason = passes.standing(passes.identity(index))
    if passed == best:
        return best, why
    if passed is not None:
        reason = f"the self-check that passed on this GPU was of {passed}, and {best} would run ({why or 'no reason'})"
    return "reference", f"{reason}; run `{passes.COMMAND} --device {index}` once, and they are used if it passes"


def best_available() -> tuple[str, str]:
    """`cuda` where the CUDA library loads, else `triton`, and why."""
    try:
        _load_cuda_library()
    except InputError as error:
        return "triton", str(error).removeprefix("PYPRUNE_GPU=cuda: ")
    return "cuda", ""


def _take(wanted: str) -> Functions:
    """The kernels of this choice by operator."""
    global _tuning
    require_triton(f"PYPRUNE_GPU={wanted}")
    tuning = importlib.import_module("pyprune.triton_kernels.tuning")
    tuning.load()
    _tuning = tuning.report()
    functions: Functions = importlib.import_module("pyprune.triton_kernels.registration").OPERATORS
    if set(functions) != set(KERNELS):
        odd = ", ".join(sorted(set(functions) ^ set(KERNELS)))
        raise RuntimeError(f'{odd}: in triton_kernels/registration.py or marked "gpu" in operators/, not both')
    if wanted == "cuda":
        _load_cuda_library()
        functions = {**functions, **skinny_routes(functions)}
    return functions


def require_triton(what: str) -> None:
    """InputError saying what is missing where the Triton kernels cannot run here; `what` asks for them."""
    if not torch.cuda.is_available():
        raise InputError(f"{what}: {NO_GPU}")
    kernels = importlib.import_module("pyprune.triton_kernels")
    if not kernels.available():
        raise InputError(f"{what}: {kernels.why_not()}")


def _load_cuda_library() -> None:
    if problem := library_files.problem(CUDA_LIBRARY_PATH):
        raise InputError(f"PYPRUNE_GPU=cuda: {problem}; it takes nvcc and a CUDA torch")
    try:
        torch.ops.load_library(str(CUDA_LIBRARY_PATH))
        library = ctypes.CDLL(str(CUDA_LIBRARY_PATH))
    except OSError as error:
        raise InputError(f"PYPRUNE_GPU=cuda: {CUDA_LIBRARY_PATH.name} does not load: {error}") from None
    library.pyprune_cuda_problem.restype = ctypes.c_char_p
    if reason := library.pyprune_cuda_problem():
        raise InputError(f"PYPRUNE_GPU=cuda: {CUDA_LIBRARY_PATH.name} cannot run here: {reason.decode()}")
    for name in CUDA_OPERATORS:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"pyprune::{name}", "CUDA"):
            raise InputError(f"PYPRUNE_GPU=cuda: {CUDA_LIBRARY_PATH.name} has no {name}: build it again (make setup)")


@contextlib.contextmanager
def recording(device: torch.device) -> Iterator[None]:
    """Within it, this thread captures a decode step on `device` in which nothing writes a weight or a skip mask: the
    CUDA library's kernels may ask for their first weights while the kernel before still runs."""
    if choice_for(device).kernels != "cuda":
        yield
        return
    record = ctypes.CDLL(str(CUDA_LIBRARY_PATH)).pyprune_cuda_record
    record(1)
    try:
        yield
    finally:
        record(0)


def skinny_routes(others: Functions) -> Functions:
    """The operators that send one or two rows to the CUDA library's operators, where these take their arguments, and
    all else to `others`."""
    return {
        name: _routed(name, cuda_name, route, others[name])
        for cuda_name, operator in CUDA_OPERATORS.items()
        for name, route in operator.routes.items()
    }


def _routed(name: str, cuda_name: str, route: Route, other: Callable[..., Tensor]) -> Callable[..., Tensor]:
    operator, defaults = OPERATORS[name], CUDA_OPERATORS[cuda_name].defaults
    kernel = getattr(torch.ops.pyprune, cuda_name)

    def call(x: Tensor, *rest: Any, **options: Any) -> Tensor:
        if 0 < x.numel() <= MOST_CUDA_ROWS * x.shape[-1]:
            arguments = operator.bind(x, *rest, **options)
            if route.takes(arguments):
                values = {**defaults, **arguments, **route.extra}
                return kernel(*(values[argument] for argument in defaults))
        return other(x, *rest, **options)

    return call


def runs_kernels(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether kernels take activations of `dtype` on this GPU. Only their steps can be recorded in a CUDA graph: the
    reference implementations wait for the device."""
    kernels = _kernels_on(device) if _named == "auto" else _named
    return kernels != "reference" and dtype in (torch.float32, torch.bfloat16, torch.float16)


# As it stands when it is asked: tests put another in its place.
results.ask(lambda dtype, device: runs_kernels(dtype, device))


def report() -> dict[str, object]:
    """The choice on the current GPU, what there is to choose from, why it is no other, what the kernels were checked
    on, what is tuned; and of each GPU its name, its choice, the reason and whether its self-check holds."""
    there = torch.cuda.is_available()
    devices = [_report_of(index) for index in range(torch.cuda.device_count())] if there else []
    here: dict[str, object] = {"chosen": _named, "reason": NO_GPU}
    if devices:
        here = devices[torch.cuda.current_device()]
    return {
        "gpu": there, "chosen": here["chosen"], "choices": list(CHOICES), "reason": here["reason"],
        "checked_on": list(CHECKED_ON.values()), "tuning": _tuning, "devices": devices,
    }  # fmt: skip


def _report_of(index: int) -> dict[str, object]:
    chosen: str | None = None
    try:
        choice = choice_for(torch.device("cuda", index))
    except InputError as error:  # a tuning file that is not sound: told, like all that is wrong here
        reason = f"no operator runs: {error}"
    else:
        chosen = choice.kernels
        tuned = f", {_tuning['loaded']} configurations from {_tuning['file']}" if _tuning and _tuning["loaded"] else ""
        reason = f"{chosen}{tuned}{f' ({choice.why})' if choice.why else ''}"
        if chosen == "reference":
            reason = choice.why or "PYPRUNE_GPU=reference"
    passed, why = passes.standing(passes.identity(index))
    major, minor = torch.cuda.get_device_capability(index)
    return {
        "device": f"cuda:{index}", "name": torch.cuda.get_device_name(index), "compute_capability": f"{major}.{minor}",
        "chosen": chosen, "reason": reason, "self_check": {"passed": passed, "why_not": why or None},
    }  # fmt: skip
