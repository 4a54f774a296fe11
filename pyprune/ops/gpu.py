"""Which implementation of the operators runs on a GPU.

`PYPRUNE_GPU=auto|definitions|triton|cuda`: the plain definitions; the Triton kernels; the Triton kernels and, for one
or two rows, those of the CUDA library. `auto` takes the last of these that is there, where the kernels have passed
their check on hardware of this kind (`CHECKED_ON`); on other GPUs the definitions, and says so once. That is decided
when an operator first meets a tensor on a GPU, so that importing pyprune touches none. With the Triton kernels the
configurations that `pyprune tune` measured on this GPU are taken from its file, if there is one
(`pyprune.triton_kernels.tuning`).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.ops import library_files
from pyprune.ops.contracts import LIBRARY
from pyprune.ops.definitions import DEFINITIONS
from pyprune.ops.schemas import CUDA_SCHEMAS

CHOICES = ("auto", "definitions", "triton", "cuda")
CHECKED_ON = {9: "NVIDIA H100 (compute capability 9.0)"}
"""By the first number of the compute capability: the GPUs on which the operators were checked (docs/gpu.md)."""

KERNELS = (
    "norm_qkv_rope", "decode_attention", "linear_residual", "norm_gate_up", "norm_head", "linear_cross_entropy",
    "padded_linear",
)  # fmt: skip
CUDA_LIBRARY_PATH = library_files.path("cuda")
MOST_CUDA_ROWS = 2
NO_GPU = "no GPU that this torch can use (it takes an NVIDIA driver and a CUDA build of torch)"

Functions = dict[str, Callable[..., Tensor]]

_chosen: str | None = "definitions"  # None: not decided before the first operator on a GPU
_why = ""  # `auto` decided as it did
_functions: Functions = {}  # what it decided for
_tuning: dict[str, object] | None = None
_deciding = threading.Lock()


def choose() -> None:
    """Register what `PYPRUNE_GPU` names, if there is a GPU. InputError for an unknown name or one that cannot run, and
    for a file of tuned configurations that is not sound (for `auto` when it decides)."""
    global _chosen
    wanted = os.environ.get("PYPRUNE_GPU", "auto")
    if wanted not in CHOICES:
        raise InputError(f"PYPRUNE_GPU={wanted}: one of {', '.join(CHOICES)} is expected")
    if not torch.cuda.is_available() or wanted == "definitions":
        return
    if wanted == "auto":
        _chosen = None
        functions: Functions = {name: partial(_as_decided, name) for name in KERNELS}
    else:
        functions = _take(wanted)
        _chosen = wanted
    for name, function in functions.items():
        LIBRARY.impl(name, function, "CUDA")


def _as_decided(name: str, *args: Any, **options: Any) -> Tensor:
    _decide()
    if args[0].dtype == torch.float64:  # only the definitions compute in it
        return DEFINITIONS[name](*args, **options)
    return _functions[name](*args, **options)


def _decide() -> None:
    """What `auto` means on this machine, once; it looks at the GPU."""
    if _chosen is None:
        _decide_now()


@torch.compiler.assume_constant_result  # it may be met first while a model is traced, which knows no locks
def _decide_now() -> None:
    global _chosen, _functions, _why
    with _deciding:
        if _chosen is not None:
            return
        wanted, _why = _best_here()
        if wanted == "definitions":
            warnings.warn(
                f"pyprune: plain PyTorch definitions run on this GPU: {_why}; PYPRUNE_GPU=triton or cuda takes the "
                "kernels nevertheless, PYPRUNE_GPU=definitions silences this",
                stacklevel=3,
            )
        _functions = DEFINITIONS if wanted == "definitions" else _take(wanted)
        _chosen = wanted  # last: from now on nobody waits


def _best_here() -> tuple[str, str]:
    """The choice, and why it is not more than that."""
    for device in range(torch.cuda.device_count()):  # the choice is one for all that are visible
        major, minor = torch.cuda.get_device_capability(device)
        if major not in CHECKED_ON:
            checked = ", ".join(CHECKED_ON.values())
            return "definitions", f"compute capability {major}.{minor}, and the kernels were checked on {checked} only"
    kernels = importlib.import_module("pyprune.triton_kernels")
    if not kernels.available():
        return "definitions", kernels.why_not()
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
    if wanted == "cuda":
        _load_cuda_library()
        functions = {**functions, **few_row_routes(functions)}
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
    for name in CUDA_SCHEMAS:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"pyprune::{name}", "CUDA"):
            raise InputError(f"PYPRUNE_GPU=cuda: {CUDA_LIBRARY_PATH.name} has no {name}: build it again (make setup)")


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Within it, this thread captures a decode step in which nothing writes a weight or a skip mask: the CUDA library's
    kernels may ask for their first weights while the kernel before still runs."""
    if _chosen != "cuda":
        yield
        return
    record = ctypes.CDLL(str(CUDA_LIBRARY_PATH)).pyprune_cuda_record
    record(1)
    try:
        yield
    finally:
        record(0)


def few_row_routes(others: Functions) -> Functions:
    """The operators that send one or two rows to the CUDA library's operators and any other number to `others`."""
    cuda = torch.ops.pyprune

    def few(x: Tensor) -> bool:
        return 0 < x.numel() <= MOST_CUDA_ROWS * x.shape[-1]

    def norm_gate_up(x: Tensor, *rest: object) -> Tensor:
        return cuda.cuda_norm_gate_up(x, *rest) if few(x) else others["norm_gate_up"](x, *rest)

    def linear_residual(x: Tensor, *rest: object) -> Tensor:
        return cuda.cuda_linear_residual(x, *rest) if few(x) else others["linear_residual"](x, *rest)

    def norm_head(x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if few(x):
            return cuda.cuda_linear(x, weight, bias, norm, eps, True)
        return others["norm_head"](x, norm, eps, weight, bias)

    def padded_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return cuda.cuda_linear(x, weight, bias) if few(x) else others["padded_linear"](x, weight, bias)

    def norm_qkv_rope(
        x: Tensor, norm: Tensor, eps: float, q_weight: Tensor, k_weight: Tensor, v_weight: Tensor,
        q_bias: Tensor | None, k_bias: Tensor | None, v_bias: Tensor | None, q_norm: Tensor | None,
        k_norm: Tensor | None, cos: Tensor, sin: Tensor, positions: Tensor, k_cache: Tensor, *rest: object,
    ) -> Tensor:  # fmt: skip
        weights, biases = (q_weight, k_weight, v_weight), (q_bias, k_bias, v_bias)
        plain = q_norm is None and k_norm is None and k_cache.dtype == q_weight.dtype
        if few(x) and plain and all(map(_rows_are_aligned, weights)):
            return cuda.cuda_norm_qkv_rope(x, norm, eps, *weights, *biases, cos, sin, positions, k_cache, *rest)
        return others["norm_qkv_rope"](
            x, norm, eps, *weights, *biases, q_norm, k_norm, cos, sin, positions, k_cache, *rest
        )  # fmt: skip

    return {
        "norm_qkv_rope": norm_qkv_rope,
        "norm_gate_up": norm_gate_up,
        "linear_residual": linear_residual,
        "norm_head": norm_head,
        "padded_linear": padded_linear,
    }


def _rows_are_aligned(weight: Tensor) -> bool:
    return weight.data_ptr() % 16 == 0 and weight.stride(0) * weight.element_size() % 16 == 0


def runs_kernels(dtype: torch.dtype) -> bool:
    """Whether kernels take activations of `dtype` on a GPU. Only their steps can be recorded in a CUDA graph: the
    definitions wait for the device."""
    _decide()
    return _chosen != "definitions" and dtype in (torch.float32, torch.bfloat16, torch.float16)


def report() -> dict[str, object]:
    """The choice, what there is to choose from, why it is no other, what the kernels were checked on, what is tuned."""
    there, reason = torch.cuda.is_available(), NO_GPU
    try:
        _decide()
    except InputError as error:  # a tuning file that is not sound: told, like all that is wrong here
        reason = f"no operator runs: {error}"
    if not there or _chosen is None:
        pass
    elif _chosen == "definitions":
        reason = _why or "PYPRUNE_GPU=definitions"
    else:
        tuned = f", {_tuning['loaded']} configurations from {_tuning['file']}" if _tuning and _tuning["loaded"] else ""
        reason = f"{_chosen}{tuned}{f' ({_why})' if _why else ''}"
    checked = list(CHECKED_ON.values())
    return {
        "gpu": there, "chosen": _chosen, "choices": list(CHOICES), "reason": reason, "checked_on": checked,
        "tuning": _tuning,
    }  # fmt: skip
