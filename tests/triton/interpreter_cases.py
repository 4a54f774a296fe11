"""What the faster interpreter must not lose."""

from __future__ import annotations

import pytest
import torch
import triton
from triton import language as tl

from tests.triton.on_device import DEVICE, INTERPRETED, seeded  # noqa: F401


@triton.jit
def _add(a, b, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, tl.load(a + at) + tl.load(b + at))


def test_an_index_that_overflows_is_an_error():
    if not INTERPRETED:
        pytest.skip("a GPU does not look for overflows")
    out = torch.empty(4, dtype=torch.int32, device=DEVICE)
    largest = torch.tensor([3, -(2**31), 2**31 - 1, 0], dtype=torch.int32)
    _add[(1,)](largest, torch.tensor([4, 0, 0, -7], dtype=torch.int32), out, 4)
    assert out.tolist() == [7, -(2**31), 2**31 - 1, -7]
    for one in ([0, -1, 0, 0], [0, 0, 1, 0]):
        with pytest.raises(Exception, match="int32 overflow detected for operation add"):
            _add[(1,)](largest, torch.tensor(one, dtype=torch.int32), out, 4)
