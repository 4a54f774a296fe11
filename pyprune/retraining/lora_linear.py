"""A frozen projection with its LoRA adapter as one differentiable function.

    y = x W^T + b + (s / (1 - p)) ((m * x) A^T) B^T

x `[M, in]`, W `[out, in]` and b frozen, A `[r, in]` and B `[out, r]` in training, s the adapter's scale, and m the
dropout's mask: 0 with probability p, else 1. peft's own layer computes the same in ten passes over x and y, several of
them in float32, and keeps the mask and the dropped x for the way back. Here products are in the dtype of W, x is read
as it is, the low-rank product is added where y lies, and the mask is drawn again on the way back from its seed.

Masks are of 15 random bits a value, so p is taken to the next 1/32768. On a CPU numpy draws them (SFC64), much faster
than torch's Bernoulli; the seed comes from torch's generator, so that `torch.manual_seed` decides all of them and
activation checkpoints see the same mask twice.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_INTS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_STEPS = 1 << 15
"""Of the probability."""


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
    seed = int(torch.randint(1 << 62, ())) if dropout else 0
    return _LoraLinear.apply(x, weight, bias, a, b, scale, dropout, seed)


def kept_mask(seed: int, count: int, dropout: float, like: Tensor) -> Tensor:
    """`count` masks as integers of the width of `like`'s values: all bits set where a value is kept, none where it is
    dropped."""
    integer = _INTS[like.element_size()]
    if like.device.type == "cpu":
        lanes = numpy.random.Generator(numpy.random.SFC64(seed)).integers(
            0, 1 << 64, size=-(-count // 4), dtype=numpy.uint64
        )
        bits = torch.from_numpy(lanes.view(numpy.int16))[:count]
    else:
        generator = torch.Generator(like.device).manual_seed(seed)
        bits = torch.randint(-_STEPS, _STEPS, (count,), dtype=torch.int16, device=like.device, generator=generator)
    # 15 bits from -16384 on: what is below the threshold is dropped. The sign of (threshold - bits) fills the mask.
    threshold = round(dropout * _STEPS) - _STEPS // 2 - 1
    return bits.bitwise_right_shift_(1).neg_().add_(threshold).bitwise_right_shift_(15).to(integer)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, dropout: float,
        seed: int,
    ) -> Tensor:  # fmt: skip
        dtype = weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            rows = x.reshape(-1, x.shape[-1]).to(dtype)
            factor = scale / (1 - dropout)
            down, up = a.to(dtype), (b * factor).to(dtype)
            y = F.linear(rows, weight, bias)
            low = _dropped(rows, _mask(rows, seed, dropout)) @ down.T
            y.addmm_(low, up.T)
        ctx.save_for_backward(rows, weight, down, up, low)
        ctx.settings = x.shape, x.dtype, a.dtype, b.dtype, factor, dropout, seed
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up, low = ctx.saved_tensors
        shape, x_dtype, a_dtype, b_dtype, factor, dropout, seed = ctx.settings
        with torch.autocast(rows.device.type, enabled=False):
            slope = gradient.reshape(-1, gradient.shape[-1]).to(weight.dtype)
            low_slope = slope @ up
            mask = _mask(rows, seed, dropout)
            b_slope = (slope.T @ low).to(b_dtype) * factor
            a_slope = (low_slope.T @ _dropped(rows, mask)).to(a_dtype)
            x_slope = None
            if ctx.needs_input_grad[0]:
                x_slope = slope @ weight
                if mask is not None:
                    x_slope += _dropped(low_slope @ down, mask)
                else:
                    x_slope.addmm_(low_slope, down)
                x_slope = x_slope.view(shape).to(x_dtype)
        return x_slope, None, None, a_slope, b_slope, None, None, None


def _mask(values: Tensor, seed: int, dropout: float) -> Tensor | None:
    """The mask of this seed, of the shape of the values; None without dropout."""
    return kept_mask(seed, values.numel(), dropout, values).view(values.shape) if dropout else None


def _dropped(values: Tensor, mask: Tensor | None) -> Tensor:
    """The values with 0 where the mask says so; themselves without one."""
    if mask is None:
        return values
    return (values.contiguous().view(mask.dtype) & mask).view(values.dtype)


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
