"""What every reference implementation checks its arguments with."""

from __future__ import annotations

from torch import Tensor


def expect(condition: bool, message: str) -> None:
    """RuntimeError with this message unless the condition holds."""
    if not condition:
        raise RuntimeError(message)


def described(tensor: Tensor) -> str:
    """Dtype, shape and device of a tensor, for a message."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
