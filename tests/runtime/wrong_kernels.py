"""Operators that are wrong in ways that the self-check must see; otherwise the reference implementations."""

from __future__ import annotations

import os
import signal
import time

import torch
from torch import Tensor

from pyprune.ops.reference import REFERENCE

right = REFERENCE


def too_large(x: Tensor, *rest: object) -> Tensor:
    return right["linear_residual"](x, *rest) * 1.02


def deaf_to_the_mask(x: Tensor, norm: Tensor, eps: float, gate: Tensor, up: Tensor, *rest: object) -> Tensor:
    return right["norm_gate_up"](x, norm, eps, gate, up, *rest[:2])


def deaf_too(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, *rest: object) -> Tensor:
    return right["linear_residual"](x, weight, bias, residual)


def straying(*args: object) -> Tensor:
    result = right["norm_qkv_rope"](*args)
    args[14][-1, 0, -1] = 1.0  # the last row of the cache, which is no token's
    return result


def deadly(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
    if x.dtype == torch.bfloat16 and tuple(x.shape) == (1, 129):
        os.kill(os.getpid(), signal.SIGSEGV)
    return right["padded_linear"](x, weight, *rest)


def hanging(x: Tensor, *rest: object) -> Tensor:
    if x.dtype == torch.float16 and tuple(x.shape) == (1, 129):
        time.sleep(600)
    return right["norm_head"](x, *rest)


TOO_LARGE = {**right, "linear_residual": too_large}
DEAF = {**right, "norm_gate_up": deaf_to_the_mask, "linear_residual": deaf_too}  # one of them would not show in a step
STRAYING = {**right, "norm_qkv_rope": straying}
DEADLY = {**right, "padded_linear": deadly, "norm_head": hanging}
