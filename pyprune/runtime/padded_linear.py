"""nn.Linear for widths that no kernel was made for: 7155, 8807 and the like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyprune import ops
from pyprune.errors import InputError
from pyprune.runtime.rows import worth_it


class PaddedLinear(nn.Linear):
    """`x [..., in] weight^T + bias` for any width: an nn.Linear whose weight rows each start on 64 bytes.

    The weight has its logical shape, and the state dict nn.Linear's keys; only its rows lie up to 63 bytes further
    apart, so that wide loads and a GEMM's fast paths hold. Moving, casting, copying and loading keep that. Few rows of
    activations on a CPU run on `pyprune.ops.padded_linear`, others on torch's GEMM; both have gradients. On a GPU the
    operator runs where kernels are in use (docs/guides/run-on-a-gpu.md).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._pad()

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> PaddedLinear:
        """The same linear as a PaddedLinear. It takes the parameters over, so optimizers and tied weights hold; where
        rows must be moved, their memory is replaced. InputError for anything but an nn.Linear with ordinary weights."""
        if not isinstance(linear, nn.Linear) or not _is_ordinary(linear._parameters.get("weight")):
            raise InputError(
                f"PaddedLinear: {type(linear).__name__} given; an nn.Linear with plain weights is expected"
            )
        padded = cls.__new__(cls)
        nn.Module.__init__(padded)
        padded.in_features, padded.out_features = linear.in_features, linear.out_features
        padded.weight, padded.bias = linear.weight, linear.bias
        padded.train(linear.training)
        padded._pad()
        return padded

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def _pad(self) -> None:
        weight = self._parameters.get("weight")
        if _is_ordinary(weight):
            weight.data = ops.pad_stride(weight.data)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PaddedLinear:
        # Casting and moving give rows without a space between them.
        super()._apply(fn, recurse)
        self._pad()
        return self

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self._pad()  # load_state_dict(assign=True) puts other tensors here

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__setstate__(state)
        self._pad()  # copies and pickles


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K] weight^T + bias by the operator where it is the quicker one, else by torch's GEMM."""
    if x.dtype == weight.dtype and not torch.is_autocast_enabled(x.device.type) and _runs_operator(x):
        return ops.padded_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def _is_ordinary(weight: Tensor | None) -> TypeGuard[nn.Parameter]:
    """Neither absent, quantised nor sharded."""
    return type(weight) is nn.Parameter and weight.dim() == 2 and weight.is_floating_point()


def _runs_operator(x: Tensor) -> bool:
    return ops.gpu.runs_kernels(x.dtype, x.device) if x.device.type == "cuda" else worth_it(x)
