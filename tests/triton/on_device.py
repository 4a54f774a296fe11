"""Where the Triton kernels run in the tests: in Triton's interpreter on CPU tensors, or on a GPU.

`test_interpreter.py` runs the files `*_cases.py` in the interpreter, in processes of their own (TRITON_INTERPRET=1). On
a machine with a GPU: python -m pytest tests/triton/*_cases.py
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from pyprune import triton_kernels
from pyprune.ops.reference import REFERENCE
from tests import seeds
from tests.judge import assert_no_worse_than_torch
from tests.ops.inputs import double, low
from tests.triton import faster_interpreter

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not triton_kernels.available():
    pytest.skip(str(triton_kernels.why_not()), allow_module_level=True)
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1 or a CUDA device", allow_module_level=True)

from pyprune.triton_kernels import gemm  # noqa: E402
from pyprune.triton_kernels.registration import OPERATORS  # noqa: E402

if INTERPRETED:
    faster_interpreter.install()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [  # batch, tokens, heads, kv_heads, head_dim, hidden, cache rows
    (1, 1, 3, 1, 64, 96, 90),
    (3, 1, 1, 1, 16, 200, 30),
    (3, 5, 4, 2, 10, 33, 40),
    (2, 33, 2, 2, 22, 50, 40),
    (2, 3, 8, 1, 32, 40, 130),
    (20, 1, 2, 2, 16, 24, 60),
]
NAN = float("nan")


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each test of a file that imports it."""
    monkeypatch.delenv(gemm.VARIABLE, raising=False)
    torch.manual_seed(seeds.seed())
    torch.set_num_threads(1)


def run(name: str, *args: object) -> Tensor:
    """The kernels' result for CPU arguments; what they write in place comes back too."""
    moved = [a.to(DEVICE) if isinstance(a, Tensor) else a for a in args]
    result = OPERATORS[name](*moved).cpu()
    if name == "norm_qkv_rope":
        for place in (14, 15):
            args[place].copy_(moved[place])
    return result


def check(name: str, args: list, dtype: torch.dtype, tiny: float = 1e-6) -> None:
    reference = REFERENCE[name]
    assert_no_worse_than_torch(run(name, *args), reference(*low(dtype, *args)), reference(*double(*args)), tiny)
