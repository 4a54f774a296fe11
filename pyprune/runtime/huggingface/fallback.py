"""Where transformers' own code must run: modules that are no longer plain, and masks that no operator expresses.

Modules are examined in every forward pass, for anything may have happened to a model since it was accelerated. That
costs as much as a small operator, so modules' own dictionaries are read: `module.weight` takes ten times as long.
"""

from __future__ import annotations

from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from pyprune.runtime.padded_linear import PaddedLinear

OUTPUT_CAPTURING = "transformers.utils.output_capturing"

Weights = tuple[Tensor, Tensor | None]  # weight, and bias where there is one


def is_plain(module: nn.Module | None, kind: type[nn.Module]) -> TypeGuard[nn.Module]:
    """Exactly of this class, with no hooks and no `forward` of its own (as the accelerate and kernels libraries set).

    What transformers hooks to attention for `output_attentions` does not count: it is idle unless that is asked for.
    """
    if module is None or type(module) is not kind or module._forward_pre_hooks or "forward" in module.__dict__:
        return False
    hooks = module._forward_hooks
    return not hooks or all(getattr(hook, "__module__", None) == OUTPUT_CAPTURING for hook in hooks.values())


def plain_weights(
    module: nn.Module | None, kind: type[nn.Module], dtype: torch.dtype, device: torch.device
) -> Weights | None:
    """weight and bias (None without one) of a plain linear or norm, where they are ordinary parameters (not quantised,
    not sharded) of this dtype on this device, the values of a row side by side; None otherwise."""
    if not is_plain(module, kind):
        return None
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None:
        return None
    for tensor in (weight,) if bias is None else (weight, bias):
        if type(tensor) is not nn.Parameter or tensor.dtype != dtype or tensor.device != device:
            return None
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            return None
    return weight, bias


def plain_linear(module: nn.Module | None, dtype: torch.dtype, device: torch.device) -> Weights | None:
    """`plain_weights` of an nn.Linear, accelerated or not, or of a PaddedLinear."""
    if module is None:
        return None
    kind = type(module)
    is_linear = kind is nn.Linear or kind is PaddedLinear or getattr(kind, "original", None) is nn.Linear
    return plain_weights(module, kind, dtype, device) if is_linear else None


def any_global_hook() -> bool:
    """Whether hooks are set for all modules at once (profilers do)."""
    return bool(torch.nn.modules.module._has_any_global_hook())


class Causal(NamedTuple):
    """Query (b, t) sees the rows `first[b]` .. its own; `first` is int64 `[B]`, None for 0."""

    first: Tensor | None = None


def causal(mask: Tensor | None, rows: Tensor, start: int, length: int, is_causal: bool) -> Causal | None:
    """What `mask` lets queries see of `length` key rows, where it is causal attention with or without left padding.

    mask: bool (True: seen) or additive (0 or the dtype's minimum) `[B or 1, 1, T, length]`. `rows [B, T]`: each
    query's own row, from `start`. `is_causal`: whether the model's attention is causal where it gets no mask (sdpa;
    eager sees everything). None for any other mask; every query must see its own row.
    """
    batch, tokens = rows.shape
    if mask is None:
        sees_all = tokens == 1 and start + 1 == length
        return Causal() if sees_all or (is_causal and start == 0) else None
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[0] not in (1, batch):
        return None
    if mask.shape[1:] != (1, tokens, length):
        return None
    if mask.dtype == torch.bool:
        seen = mask[:, 0]
    else:
        seen = mask[:, 0] == 0
        if not bool((seen | (mask[:, 0] <= torch.finfo(mask.dtype).min)).all()):
            return None
    first = seen[:, 0].to(torch.uint8).argmax(-1)
    row = torch.arange(length, device=mask.device)
    expected = (row >= first[:, None, None]) & (row <= rows.unsqueeze(-1))
    if not torch.equal(seen.expand(expected.shape), expected):
        return None
    return Causal(first.expand(batch).contiguous() if bool(first.any()) else None)
