"""Registers every schema of `schemas.py` with torch: its reference, its fake, and its gradient or that it has none."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyprune.ops import cuda_schemas, torch_version
from pyprune.ops.schemas import CUDA_SCHEMAS, SCHEMAS
from pyprune.ops.weight_formats import format_of
from pyprune.strides import gpu_stride

torch_version.require()

LIBRARY = torch.library.Library("pyprune", "DEF")


def _without_gradient(name: str) -> Callable[..., Tensor | None]:
    def call(*args: Any, **options: Any) -> Tensor | None:
        given = (*args, *options.values())
        flat = (one for value in given for one in (value if isinstance(value, (list, tuple)) else (value,)))
        if torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in flat):
            raise RuntimeError(f"pyprune::{name} has no gradient: call it under torch.no_grad() or detach its inputs")
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.pyprune, name)(*args, **options)

    return call


for _name, _schema in {**SCHEMAS, **CUDA_SCHEMAS}.items():
    LIBRARY.define(_name + _schema)
    if _name != "padded_linear":
        LIBRARY.impl(_name, _without_gradient(_name), "Autograd")
for _name, _fake in cuda_schemas.FAKES.items():
    torch.library.register_fake(f"pyprune::{_name}", _fake)


def _keep_for_gradients(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, weight, bias = inputs
    if (stored_as := format_of(weight)) is not None:
        raise RuntimeError(f"padded_linear: a {stored_as.name} weight has no gradient: call it under torch.no_grad()")
    ctx.save_for_backward(x, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _linear_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias: the reference implementation's, by torch's GEMM in the weights' dtype."""
    x, weight = ctx.saved_tensors
    # The dispatcher drops a bias that is not given, and its place in `needs_input_grad` with it.
    (out, inner), count, wanted = weight.shape, x.shape[:-1].numel(), ctx.needs_input_grad
    rows = gradient.reshape(count, out)
    low = rows.to(weight.dtype)
    return (
        (low @ weight).to(x.dtype).view(x.shape) if wanted[0] else None,
        low.T @ x.reshape(count, inner).to(weight.dtype) if wanted[1] else None,
        rows.sum(0).to(ctx.bias_dtype) if wanted[2:] == (True,) else None,
    )


torch.library.register_autograd(
    "pyprune::padded_linear", _linear_gradients, setup_context=_keep_for_gradients, lib=LIBRARY
)


# What each operator gives, for tracing (torch.compile, meta tensors): shapes and dtypes without values.


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of logits and losses: float32, and float64 where the reference implementations compute in it."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rows_to_project(x: Tensor, *shape: int) -> Tensor:
    """A result that a projection reads next: where kernels run on a GPU its rows start on 16 bytes."""
    gpu = importlib.import_module("pyprune.ops.gpu")  # which imports this module
    *leading, width = shape
    kernels = x.device.type == "cuda" and gpu.runs_kernels(x.dtype, x.device)
    stride = gpu_stride(width, x.dtype.itemsize) if kernels else width
    rows = x.new_empty(*leading, stride)
    return rows if stride == width else rows[..., :width]


@torch.library.register_fake("pyprune::norm_qkv_rope")
def _(
    x: Tensor, norm: Tensor, eps: float, q_weight: Tensor, k_weight: Tensor, v_weight: Tensor,
    q_bias: Tensor | None, k_bias: Tensor | None, v_bias: Tensor | None, q_norm: Tensor | None, k_norm: Tensor | None,
    cos: Tensor, sin: Tensor, positions: Tensor, k_cache: Tensor, v_cache: Tensor,
    skip: Tensor | None = None, unit: int = 0, slots: Tensor | None = None,
) -> Tensor:  # fmt: skip
    head_dim = k_cache.shape[3]
    return x.new_empty(x.shape[0], x.shape[1], q_weight.shape[0] // head_dim, head_dim)


@torch.library.register_fake("pyprune::decode_attention")
def _(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    scale: float,
    skip: Tensor | None = None,
    unit: int = 0,
    first: Tensor | None = None,
    window: int = 0,
) -> Tensor:
    batch, tokens, heads, head_dim = q.shape
    return _rows_to_project(q, batch * tokens, heads * head_dim).view(q.shape)


@torch.library.register_fake("pyprune::linear_residual")
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, skip: Tensor | None = None, unit: int = 0
) -> Tensor:
    return residual.new_empty(residual.shape)


@torch.library.register_fake("pyprune::norm_gate_up")
def _(
    x: Tensor, norm: Tensor, eps: float, gate: Tensor, up: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None,
    skip: Tensor | None = None, unit: int = 0,
) -> Tensor:  # fmt: skip
    return _rows_to_project(x, *x.shape[:-1], gate.shape[0])


@torch.library.register_fake("pyprune::norm_head")
def _(x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0], dtype=_wide(x.dtype))


@torch.library.register_fake("pyprune::linear_cross_entropy")
def _(
    x: Tensor, weight: Tensor, targets: Tensor, norm: Tensor | None = None, eps: float = 0.0,
    bias: Tensor | None = None, ignore_index: int = -100,
) -> Tensor:  # fmt: skip
    return x.new_empty(targets.shape, dtype=_wide(x.dtype))


@torch.library.register_fake("pyprune::padded_linear")
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.register_fake("pyprune::compress_bfloat16")
def _(weight: Tensor) -> Tensor:
    row = torch.library.get_ctx().new_dynamic_size()  # depends on the exponents
    return weight.new_empty(weight.shape[0], row, dtype=torch.uint8)


@torch.library.register_fake("pyprune::decompress_bfloat16")
def _(compressed: Tensor, columns: int) -> Tensor:
    return compressed.new_empty(compressed.shape[0], columns, dtype=torch.bfloat16)


@torch.library.register_fake("pyprune::dequantize_gguf")
def _(blocks: Tensor, type: int, out: Tensor) -> None:
    return None


@torch.library.register_fake("pyprune::decode_step")
def _(
    tokens: Tensor, positions: Tensor, embedding: Tensor, weights: list[Tensor], layout: list[int],
    caches: list[Tensor], norm: Tensor, eps: float, head: Tensor, head_bias: Tensor | None, cos: Tensor, sin: Tensor,
    skip: Tensor | None = None,
) -> Tensor:  # fmt: skip
    return embedding.new_empty(tokens.shape[0], head.shape[0], dtype=_wide(embedding.dtype))
