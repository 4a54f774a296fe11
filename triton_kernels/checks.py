"""The operators' arguments: shapes, dtypes and devices, refused by name with a RuntimeError.

Values on the device (positions, targets, the skip mask) are never read here: that would wait for the GPU. A position
or target outside its range gives NaN in its row and touches no memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _floats(tensor: Tensor, what: str, device: torch.device) -> None:
    expect(tensor.dtype in FLOATS, f"{what}: float32, bfloat16 or float16 is expected, not {tensor.dtype}")
    expect(tensor.device == device, f"{what}: a tensor on {device} is expected, not on {tensor.device}")


def matrix(weight: Tensor, inner: int, what: str, like: Tensor, dtype: torch.dtype | None = None) -> None:
    """A weight [*, inner] on the device of `like` with contiguous rows, of `dtype` if not None."""
    _floats(weight, what, like.device)
    expect(dtype in (None, weight.dtype), f"{what}: {dtype} like the other weights is expected, not {weight.dtype}")
    expect(
        weight.dim() == 2 and weight.shape[1] == inner and (inner <= 1 or weight.stride(1) == 1),
        f"{what}: a matrix [*, {inner}] with contiguous rows is expected, not {list(weight.shape)}",
    )


def vector(values: Tensor | None, size: int, what: str, like: Tensor) -> Tensor | None:
    """A contiguous vector of `size` values, or None."""
    if values is not None:
        _floats(values, what, like.device)
        expect(
            values.dim() == 1 and values.shape[0] == size and (size <= 1 or values.stride(0) == 1),
            f"{what}: a contiguous vector of {size} values is expected, not {list(values.shape)}",
        )
    return values


def activations(x: Tensor, what: str, weight: Tensor) -> Tensor:
    """x [..., K] as rows [rows, K] that are contiguous each."""
    _floats(x, what, weight.device)
    expect(x.dim() >= 1, f"{what}: a tensor [..., features] is expected")
    expect(
        x.dtype in (torch.float32, weight.dtype),
        f"{what}: float32 or the weights' {weight.dtype} is expected, not {x.dtype}",
    )
    rows = x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.new_empty(x.shape[:-1].numel(), 0)
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


def skip_mask(skip: Tensor | None, sublayer: int, device: torch.device) -> None:
    if skip is not None:
        expect(
            skip.dtype == torch.bool and skip.dim() == 1 and skip.is_contiguous() and skip.device == device,
            f"skip: a contiguous bool vector on {device} is expected",
        )
        expect(0 <= sublayer < skip.shape[0], f"sublayer: {sublayer} is outside the skip mask of {skip.shape[0]}")


def indices(values: Tensor, shape: tuple[int, ...], what: str, device: torch.device) -> Tensor:
    expect(
        values.dtype == torch.int64 and tuple(values.shape) == shape and values.device == device,
        f"{what}: an int64 tensor {list(shape)} on {device} is expected, not {values.dtype} {list(values.shape)}",
    )
    return values.contiguous()


def caches(k_cache: Tensor, v_cache: Tensor, batch: int, device: torch.device) -> None:
    """Both [B', G, L, D] with B' >= batch and contiguous D, of one dtype and shape; the rest may be strided."""
    for cache, what in ((k_cache, "k_cache"), (v_cache, "v_cache")):
        _floats(cache, what, device)
        expect(
            cache.dim() == 4 and cache.shape[0] >= batch and (cache.shape[3] <= 1 or cache.stride(3) == 1),
            f"{what}: [at least {batch}, kv heads, length, head size] with contiguous heads is expected",
        )
    expect(
        v_cache.shape == k_cache.shape and v_cache.dtype == k_cache.dtype,
        f"v_cache: {k_cache.dtype} {list(k_cache.shape)} like k_cache is expected",
    )
