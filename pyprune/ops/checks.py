"""What every reference implementation checks its arguments with."""

from __future__ import annotations

import torch
from torch import Tensor


def expect(condition: bool, message: str) -> None:
    """RuntimeError with this message unless the condition holds."""
    if not condition:
        raise RuntimeError(message)


def described(tensor: Tensor) -> str:
    """Dtype, shape and device of a tensor, for a message."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"


def skipped(skip: Tensor | None, sublayer: int) -> bool:
    """Whether the mask, where there is one, leaves this sublayer out."""
    if skip is None:
        return False
    expect(skip.dtype == torch.bool and skip.dim() == 1, "skip: a bool vector is expected")
    expect(0 <= sublayer < skip.shape[0], f"sublayer: {sublayer} is outside the skip mask of {skip.shape[0]}")
    return bool(skip[sublayer])


def check_places(name: str, places: Tensor, shape: tuple[int, ...], limit: int) -> None:
    """RuntimeError unless `places` are int64 of this shape, each in [0, limit)."""
    expect(
        places.dtype == torch.int64 and tuple(places.shape) == shape,
        f"{name}: an int64 tensor [batch{', tokens' if len(shape) == 2 else ''}] is expected",
    )
    if places.numel():
        low, high = int(places.min()), int(places.max())
        worst = low if low < 0 else high
        expect(0 <= worst < limit, f"{name}: {worst} is outside [0, {limit})")
