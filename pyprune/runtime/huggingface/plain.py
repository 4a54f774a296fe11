"""Whether a module still computes what its class says, so that an operator may stand in for it.

All of this is asked in every forward pass, for anything may have happened to a model since it was accelerated. It costs
as much as a small operator, so modules' own dictionaries are read: `module.weight` takes ten times as long.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyprune.runtime.padded_linear import PaddedLinear

OUTPUT_CAPTURING = "transformers.utils.output_capturing"

Weights = tuple[Tensor, Tensor | None]  # weight, and bias where there is one


def is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Exactly of this class, with no hooks and no `forward` of its own (as the accelerate and kernels libraries set).

    What transformers hooks to attention for `output_attentions` does not count: it is idle unless that is asked for.
    """
    if type(module) is not kind or module._forward_pre_hooks or "forward" in module.__dict__:
        return False
    hooks = module._forward_hooks
    return not hooks or all(getattr(hook, "__module__", None) == OUTPUT_CAPTURING for hook in hooks.values())


def plain_weights(
    module: nn.Module | None, kind: type[nn.Module], dtype: torch.dtype, device: torch.device
) -> Weights | None:
    """weight and bias (None without one) of a plain linear or norm, where they are ordinary parameters (not quantised,
    not sharded) of this dtype on this device; None otherwise."""
    if not is_plain(module, kind):
        return None
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    for tensor in (weight,) if bias is None else (weight, bias):
        if type(tensor) is not nn.Parameter or tensor.dtype != dtype or tensor.device != device:
            return None
    return weight, bias


def plain_linear(module: nn.Module | None, dtype: torch.dtype, device: torch.device) -> Weights | None:
    """`plain_weights` of an nn.Linear, accelerated or not, or of a PaddedLinear."""
    kind = type(module)
    known = kind is nn.Linear or kind is PaddedLinear or getattr(kind, "original", None) is nn.Linear
    return plain_weights(module, kind, dtype, device) if known else None


def any_global_hook() -> bool:
    """Whether hooks are set for all modules at once (profilers do)."""
    return bool(torch.nn.modules.module._has_any_global_hook())
