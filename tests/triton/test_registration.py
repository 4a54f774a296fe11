from __future__ import annotations

import inspect as python_inspect
import subprocess
import sys
from typing import Any

import pytest
import torch

from pyprune import ops, triton_kernels

needs_triton = pytest.mark.skipif(not triton_kernels.available(), reason=str(triton_kernels.why_not()))


def test_the_package_imports_without_triton_and_says_why_it_cannot_be_used():
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "from pyprune import triton_kernels\n"
        "assert not triton_kernels.available()\n"
        "assert 'pip install triton' in triton_kernels.why_not()\n"
        "assert 'torch' not in sys.modules, 'importing the package must be cheap'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_reason_is_given_exactly_where_it_is_not_available():
    assert triton_kernels.available() == (triton_kernels.why_not() is None)


@needs_triton
def test_every_operator_has_the_schemas_arguments_and_defaults():
    from pyprune.triton_kernels.registration import OPERATORS

    assert set(OPERATORS) == set(ops.gpu.KERNELS)
    for name, function in OPERATORS.items():
        schema = getattr(torch.ops.pyprune, name).default._schema
        parameters = python_inspect.signature(function).parameters
        assert [a.name for a in schema.arguments] == list(parameters)
        for argument in schema.arguments:
            default = parameters[argument.name].default
            assert argument.has_default_value() == (default is not python_inspect.Parameter.empty)
            assert not argument.has_default_value() or argument.default_value == default


@needs_triton
@pytest.mark.parametrize("choice", ["auto", "triton"])
def test_choosing_registers_them_with_torch_for_cuda_tensors_alone(choice: str, monkeypatch, tmp_path):
    from pyprune.triton_kernels import tuning
    from pyprune.triton_kernels.registration import OPERATORS

    namespace = f"pyprune_{choice}_test"
    library = torch.library.Library(namespace, "DEF")
    for name, operator in ops.registration.OPERATORS.items():
        library.define(name + operator.schema)
    monkeypatch.setenv("PYPRUNE_GPU", choice)
    monkeypatch.setenv(tuning.VARIABLE, str(tmp_path / "none.json"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ops.gpu, "LIBRARY", library)
    for module, name in ((ops.gpu, "_named"), (ops.gpu, "_tuning"), (tuning, "_loaded")):
        monkeypatch.setattr(module, name, getattr(module, name))
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    assert not any(registered(f"{namespace}::{name}", "CUDA") for name in OPERATORS)
    ops.gpu.choose()
    for name in OPERATORS:
        assert registered(f"{namespace}::{name}", "CUDA")
        assert not registered(f"{namespace}::{name}", "CPU")


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


@needs_triton
@pytest.mark.parametrize("rows", [3, 70])
def test_results_are_as_the_fakes_say_and_no_mask_or_position_is_read_on_the_host(rows: int):
    from pyprune.triton_kernels.configs import SM_90
    from pyprune.triton_kernels.launch import recording
    from pyprune.triton_kernels.registration import OPERATORS

    half = torch.float16
    x, w, n = meta(rows, 1, 61), meta(40, 61, dtype=half), meta(61, dtype=half)
    cache, table, index = meta(rows, 2, 30, 20, dtype=half), meta(30, 10), meta(rows, 1, dtype=torch.int64)
    skip, first = [meta(3, dtype=torch.bool), 2], meta(rows, dtype=torch.int64)  # none of which may be read here
    calls: dict[str, list[Any]] = {
        "norm_qkv_rope": [x, n, 1e-5, w, w, w, *[None] * 5, table, table, index, cache, cache, *skip, index],
        "decode_attention": [meta(rows, 1, 4, 20), cache, cache, index, 1.0, *skip, first, 7],
        "linear_residual": [x, w, None, meta(rows, 1, 40), *skip],
        "norm_gate_up": [x, n, 1e-5, w, w, None, None, *skip],
        "norm_head": [x, n, 1e-5, w],
        "linear_cross_entropy": [x, w, index],
        "padded_linear": [x.half(), w],
    }
    with recording(SM_90) as launches:
        for name, arguments in calls.items():
            fake, result = getattr(torch.ops.pyprune, name)(*arguments), OPERATORS[name](*arguments)
            assert (result.shape, result.dtype, result.stride()) == (fake.shape, fake.dtype, fake.stride()), name
    assert launches
