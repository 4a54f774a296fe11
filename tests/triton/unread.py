"""Runs every skinny operator for a skipped sublayer, its weights and caches in memory that may not be read.

`test_interpreter.py` runs this file in Triton's interpreter, in a process of its own: a read of them ends it, which is
seen first with a sublayer that is not skipped.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable
from functools import partial
from math import prod

import torch
from torch import Tensor

from pyprune.triton_kernels.registration import OPERATORS

MAP_PRIVATE, MAP_ANONYMOUS, PROT_NONE = 2, 0x20, 0


def unreadable(*shape: int) -> Tensor:
    """A float32 tensor whose memory may be neither read nor written."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    address = libc.mmap(None, 4 * prod(shape), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    assert address not in (None, ctypes.c_void_p(-1).value)
    return torch.frombuffer((ctypes.c_float * prod(shape)).from_address(address), dtype=torch.float32).view(shape)


def calls(skip: Tensor) -> dict[str, Callable[[], object]]:
    """Every skinny operator for sublayer 0 of the mask: checked to give what a skipped sublayer gives."""
    checked: dict[str, Callable[[], object]] = {}
    for rows in (1, 5):  # sums in registers, tensor cores; both split K, whose parts are not read either
        x, norm, residual = torch.ones(rows, 1, 160), torch.ones(160), torch.ones(rows, 1, 6)
        w = [unreadable(6, 160) for _ in range(3)]
        caches = [unreadable(rows, 1, 90, 6) for _ in range(2)]
        table, place, q = torch.ones(90, 3), torch.full((rows, 1), 80), torch.ones(rows, 1, 1, 6)
        sublayer, none = (skip, 0), (None,) * 5
        qkv = (x, norm, 1e-5, *w, *none, table, table, place, *caches, *sublayer, place)
        expected: dict[str, tuple[Tensor, tuple[object, ...]]] = {
            "norm_qkv_rope": (q * 0, qkv),
            "decode_attention": (q * 0, (q, *caches, place, 1.0, *sublayer, None, 50)),
            "linear_residual": (residual, (x, w[0], None, residual, *sublayer)),
            "norm_gate_up": (residual * 0, (x, norm, 1e-5, w[0], w[1], None, None, *sublayer)),
        }
        for name, (result, args) in expected.items():
            checked[f"{name}, {rows} rows"] = partial(_expect, name, args, result)
    return checked


def _expect(name: str, args: tuple[object, ...], result: Tensor) -> None:
    assert torch.equal(OPERATORS[name](*args), result), name


def ended_by_a_read(call: Callable[[], object]) -> bool:
    """Whether the call, in a process of its own, is ended for a read of forbidden memory."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            call()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, call in calls(torch.tensor([False])).items():
        assert ended_by_a_read(call), f"{name} did not read its weights: this proves nothing"
    for call in calls(torch.tensor([True])).values():
        call()
    print("nothing was read")
