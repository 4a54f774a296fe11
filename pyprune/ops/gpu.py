"""Which implementation of the operators runs on a GPU.

`PYPRUNE_GPU=auto|definitions|triton|cuda`: the plain definitions; the Triton kernels; the Triton kernels and, for one
or two rows, those of the CUDA library. The kernels have passed an interpreter, an emulator and the compilers, but none
has run on a GPU yet: `auto` runs the definitions there, and says so once. With the Triton kernels the configurations
that `pyprune tune` measured on this GPU are taken from its file, if there is one (`pyprune.triton_kernels.tuning`).
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.ops.contracts import LIBRARY

CHOICES = ("auto", "definitions", "triton", "cuda")
CUDA_LIBRARY_PATH = Path(__file__).resolve().parent.parent / "_cuda.so"
MOST_CUDA_ROWS = 2
NO_GPU = "no GPU that this torch can use (it takes an NVIDIA driver and a CUDA build of torch)"

_chosen = "definitions"
_tuning: dict[str, object] | None = None


def choose() -> None:
    """Register what `PYPRUNE_GPU` names, if there is a GPU. InputError for an unknown name or one that cannot run, and
    for a file of tuned configurations that is not sound."""
    global _chosen, _tuning
    wanted = os.environ.get("PYPRUNE_GPU", "auto")
    if wanted not in CHOICES:
        raise InputError(f"PYPRUNE_GPU={wanted}: one of {', '.join(CHOICES)} is expected")
    if not torch.cuda.is_available():
        return
    if wanted == "auto":
        warnings.warn(
            "pyprune: its GPU kernels have not been checked on hardware yet, so plain PyTorch definitions run on this "
            "GPU; PYPRUNE_GPU=triton or cuda takes the kernels, PYPRUNE_GPU=definitions silences this",
            stacklevel=2,
        )
    if wanted in ("auto", "definitions"):
        return
    require_triton(f"PYPRUNE_GPU={wanted}")
    tuning = importlib.import_module("pyprune.triton_kernels.tuning")
    tuning.load()
    _tuning = tuning.report()
    registration = importlib.import_module("pyprune.triton_kernels.registration")
    routes: dict[str, Callable[..., Tensor]] = {}
    if wanted == "cuda":
        _load_cuda_library()
        routes = few_row_routes(registration.OPERATORS)
    registration.register(LIBRARY, routes)
    _chosen = wanted


def require_triton(what: str) -> None:
    """InputError saying what is missing where the Triton kernels cannot run here; `what` asks for them."""
    if not torch.cuda.is_available():
        raise InputError(f"{what}: {NO_GPU}")
    kernels = importlib.import_module("pyprune.triton_kernels")
    if not kernels.available():
        raise InputError(f"{what}: {kernels.why_not()}")


def _load_cuda_library() -> None:
    if not CUDA_LIBRARY_PATH.exists():
        raise InputError(f"PYPRUNE_GPU=cuda: {CUDA_LIBRARY_PATH.name} was not built; it takes nvcc and a CUDA torch")
    try:
        torch.ops.load_library(str(CUDA_LIBRARY_PATH))
    except OSError as error:
        raise InputError(f"PYPRUNE_GPU=cuda: {CUDA_LIBRARY_PATH.name} does not load: {error}") from None


def few_row_routes(others: dict[str, Callable[..., Tensor]]) -> dict[str, Callable[..., Tensor]]:
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
    """Whether kernels take activations of `dtype` on a GPU."""
    return _chosen != "definitions" and dtype in (torch.float32, torch.bfloat16, torch.float16)


def recordable() -> bool:
    """Whether a step of the chosen operators can be recorded in a CUDA graph; the definitions wait for the device."""
    return _chosen != "definitions"


def report() -> dict[str, object]:
    """The choice, what there is to choose from, why it is not the kernels where it is not, and what was tuned."""
    there = torch.cuda.is_available()
    if _chosen != "definitions":
        tuned = f", {_tuning['loaded']} configurations from {_tuning['file']}" if _tuning and _tuning["loaded"] else ""
        reason = f"{_chosen}: never checked on hardware yet{tuned}"
    elif not there:
        reason = NO_GPU
    else:
        reason = "plain definitions; PYPRUNE_GPU=triton or cuda takes the kernels, never checked on hardware"
    return {"gpu": there, "chosen": _chosen, "choices": list(CHOICES), "reason": reason, "tuning": _tuning}
