"""The CUDA operators' schemas and fakes, against the operators they are steps of."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pyprune.ops import reference
from pyprune.ops.operators import CUDA_OPERATORS
from pyprune.ops.registration import fake_of
from pyprune.ops.schemas import SCHEMAS
from tests.cuda import tools


def arguments(schema: str) -> list[str]:
    parsed = torch._C.parse_schema(f"pyprune::name{schema}")
    return [f"{argument.type} {argument.name}" for argument in parsed.arguments]


@pytest.mark.parametrize("name", ["norm_gate_up", "linear_residual"])
def test_the_schema_is_that_of_the_operator(name: str):
    assert SCHEMAS[f"cuda_{name}"] == SCHEMAS[name]


def test_the_projection_takes_the_arguments_of_the_operator_but_the_norms_of_heads():
    ours, general = arguments(SCHEMAS["cuda_norm_qkv_rope"]), arguments(SCHEMAS["norm_qkv_rope"])
    assert ours == [argument for argument in general if not argument.endswith(("q_norm", "k_norm"))]


def test_the_plain_linear_takes_the_arguments_of_padded_linear_first():
    assert arguments(SCHEMAS["cuda_linear"])[:3] == arguments(SCHEMAS["padded_linear"])


def test_every_operator_has_a_kernel():
    source = (tools.CSRC / "registration.cpp").read_text()
    for name in CUDA_OPERATORS:
        assert f'm.impl("{name}", TORCH_BOX(&pyprune::cuda::{name}));' in source


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fakes_give_the_shapes_and_dtypes_of_the_reference(dtype: torch.dtype):
    x, weight, residual = torch.randn(2, 1, 5), torch.randn(7, 5).to(dtype), torch.randn(2, 1, 7)
    norm = torch.randn(5).to(dtype)
    expected = {
        "cuda_norm_gate_up": reference.norm_gate_up(x, norm, 1e-5, weight, weight, None, None),
        "cuda_linear_residual": reference.linear_residual(x, weight, None, residual),
        "cuda_linear": reference.padded_linear(x, weight),
    }
    given = {
        "cuda_norm_gate_up": (x, norm, 1e-5, weight, weight, None, None),
        "cuda_linear_residual": (x, weight, None, residual),
        "cuda_linear": (x, weight),
    }
    with FakeTensorMode() as mode:
        for name, args in given.items():
            fake = [mode.from_tensor(value) if isinstance(value, torch.Tensor) else value for value in args]
            made = fake_of(CUDA_OPERATORS[name])(*fake)
            assert (made.shape, made.dtype) == (expected[name].shape, expected[name].dtype), name
            # What gate and up make is read again as rows: 7 values of x's float32, on 128 bytes.
            assert made.stride() == ((32, 32, 1) if name == "cuda_norm_gate_up" else (7, 7, 1)), name
        half = mode.from_tensor(x).to(torch.bfloat16)
        assert (
            fake_of(CUDA_OPERATORS["cuda_linear"])(half, mode.from_tensor(weight), float_out=True).dtype
            == torch.float32
        )


def test_the_schemas_can_be_defined_and_called_through_torch():
    library = torch.library.Library("pyprune_cuda_test", "DEF")
    for name, operator in CUDA_OPERATORS.items():
        library.define(name + operator.schema)
        torch.library.register_fake(f"pyprune_cuda_test::{name}", fake_of(operator), lib=library)
    x, weight = torch.empty(1, 5, device="meta"), torch.empty(7, 5, device="meta")
    assert torch.ops.pyprune_cuda_test.cuda_linear(x, weight, norm=x[0], eps=1e-5, float_out=True).shape == (1, 7)
