"""A frozen projection with its LoRA adapter as one differentiable function.

    y = x W^T + b + (s / (1 - p)) ((m * x) A^T) B^T

x `[M, in]`, W `[out, in]` and b frozen, A `[r, in]` and B `[out, r]` in training, s the adapter's scale, and m the
dropout's mask: 0 with probability p, else 1. peft's own layer computes the same in ten passes over x and y, several of
them in float32, and keeps the mask and the dropped x for the way back. Here products by A and B are operators of ours
(`ops.low_rank_project` and its neighbours) that read x once as it is, sum in float32, add where y lies, and make the
mask where they need it (`pyprune.ops.dropout`): it follows from a seed. The seed comes from torch's generator, so that
`torch.manual_seed` decides all masks and activation checkpoints see the same one twice.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pyprune import ops
from pyprune.retraining.products import times, times_transposed


def fuse_adapters(model: nn.Module, adapter: str) -> int:
    """Let every plain LoRA layer of a peft model compute so; how many there are. Their parameters, names and merging
    stay peft's."""
    from peft.tuners.lora import Linear

    fused = 0
    for module in model.modules():
        if isinstance(module, Linear) and _is_plain(module, adapter):
            module.forward = partial(_forward, module, adapter)  # type: ignore[method-assign]
            fused += 1
    return fused


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0
) -> Tensor:
    """y `[..., out]` of x `[..., in]` in the dtype of `weight`, which gets no gradient; dropout: p, 0 for none."""
    return _LoraLinear.apply(x, weight, bias, a, b, scale, dropout, drawn_seed() if dropout else 0)


def drawn_seed() -> int:
    """The next mask's seed from torch's generator."""
    return int(torch.randint(1 << 62, ()))


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, dropout: float,
        seed: int,
    ) -> Tensor:  # fmt: skip
        factor = scale / (1 - dropout)
        with torch.autocast(x.device.type, enabled=False):
            rows, up = x.reshape(-1, x.shape[-1]).to(weight.dtype), (b * factor).T
            y = times_transposed(rows, weight, bias)
            low = _operator("low_rank_project", rows)(rows, a, seed, dropout)
            _operator("low_rank_add", y)(y, low, up)
        ctx.save_for_backward(rows, weight, a, b, low)
        ctx.settings = x.shape, x.dtype, factor, dropout, seed
        return y.to(weight.dtype).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, low = ctx.saved_tensors
        shape, x_dtype, factor, dropout, seed = ctx.settings
        with torch.autocast(rows.device.type, enabled=False):
            slope = gradient.reshape(-1, gradient.shape[-1]).to(weight.dtype)
            low_slope = _operator("low_rank_project", slope)(slope, (b * factor).T)
            b_slope = _operator("low_rank_gradient", slope)(low, slope).T * factor
            a_slope = _operator("low_rank_gradient", rows)(low_slope, rows, seed, dropout)
            x_slope = None
            if ctx.needs_input_grad[0]:
                x_slope = times(slope, weight)
                _operator("low_rank_add", x_slope)(x_slope, low_slope, a, seed, dropout)
                x_slope = x_slope.view(shape).to(x_dtype)
        return x_slope, None, None, a_slope.to(a.dtype), b_slope.to(b.dtype), None, None, None


def _operator(name: str, rows: Tensor) -> Any:
    return ops.operator_for(name, rows.dtype)


def _is_plain(module: Any, adapter: str) -> bool:
    """Whether a LoRA layer is of the formula above: one adapter, no variant of it, no bias, on an ordinary Linear."""
    return (
        type(module.base_layer) is nn.Linear
        and list(module.lora_A) == [adapter]
        and not module.lora_variant
        and module.lora_B[adapter].bias is None
        and not module.base_layer.weight.requires_grad
    )


def _forward(module: Any, adapter: str, x: Tensor) -> Tensor:
    if module.disable_adapters or module.merged:
        return type(module).forward(module, x)
    dropout = module.lora_dropout[adapter]
    probability = dropout.p if module.training and isinstance(dropout, nn.Dropout) else 0.0
    base = module.base_layer
    return lora_linear(
        x, base.weight, base.bias, module.lora_A[adapter].weight, module.lora_B[adapter].weight,
        module.scaling[adapter], probability,
    )  # fmt: skip
