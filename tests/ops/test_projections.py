from __future__ import annotations

import pytest
import torch

from pyprune import ops
from tests.judge import assert_no_worse_than_torch
from tests.library import needs_library
from tests.ops.inputs import ROWS, SIZES, WEIGHTS, WRONG_RESIDUAL, double, low, norm, random, weight

D = ops.reference


def check(name: str, args: list, dtype: torch.dtype) -> None:
    result = getattr(ops, name)(*args)
    reference = D.REFERENCE[name]
    assert_no_worse_than_torch(result, reference(*low(dtype, *args)), reference(*double(*args)), dtype=dtype)


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("rows", ROWS)
def test_every_projection_is_as_exact_as_pytorch_at_odd_sizes(isa: str, rows: int, dtype: torch.dtype):
    for out, inner in SIZES:
        x, w, b = random(rows, inner), weight(out, inner, dtype), random(out, dtype=dtype)
        check("padded_linear", [x, w, b], dtype)
        check("linear_residual", [x, w, b, random(rows, out)], dtype)
        check("norm_head", [x, norm(inner, dtype), 1e-5, w, None], dtype)
        up = weight(out, inner, dtype)
        check("norm_gate_up", [x, norm(inner, dtype), 1e-5, w, up, b, random(out, dtype=dtype)], dtype)
        check("norm_gate_up", [x, norm(inner, dtype), 1e-5, w, up, None, None], dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_activations_in_the_weights_dtype_give_results_in_it(isa: str, rows: int, dtype: torch.dtype):
    x, w = random(rows, 61, dtype=dtype), weight(37, 61, dtype)
    result = ops.norm_gate_up(x, norm(61, dtype), 1e-5, w, weight(37, 61, dtype), None, None)
    assert result.dtype == dtype
    check("padded_linear", [x, w, None], dtype)
    check("linear_residual", [x, w, None, random(rows, 37, dtype=dtype)], dtype)
    assert ops.norm_head(x, norm(61, dtype), 1e-5, w).dtype == torch.float32


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("rows", [1, 4, 80])
def test_rows_of_a_weight_may_lie_apart_and_what_lies_between_is_never_read(isa: str, rows: int, dtype: torch.dtype):
    store = torch.full((37, 80), float("nan")).to(dtype)
    store[:, :61] = weight(37, 61, dtype)
    x = random(rows, 61)
    assert torch.equal(ops.padded_linear(x, store[:, :61]), ops.padded_linear(x, store[:, :61].contiguous()))


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("width", [577, 2601])  # long rows meet a single activation row two at a time
def test_a_row_has_the_same_bits_in_any_batch_of_few_rows(isa: str, width: int, dtype: torch.dtype):
    x, w, n = random(64, width), weight(75, width, dtype), norm(width, dtype)
    whole = ops.norm_gate_up(x, n, 1e-5, w, w.flip(0).contiguous(), None, None)
    for start, stop in [(0, 1), (3, 5), (10, 17), (20, 64)]:
        part = ops.norm_gate_up(x[start:stop], n, 1e-5, w, w.flip(0).contiguous(), None, None)
        assert torch.equal(part, whole[start:stop])


@pytest.mark.parametrize("rows", [1, 16])
def test_the_number_of_threads_does_not_change_a_bit(isa: str, rows: int):
    x, w = random(rows, 1000), weight(333, 1000, torch.bfloat16)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.padded_linear(x, w))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_leading_dimensions_and_strided_activations_are_kept_and_followed():
    x = random(3, 61, 4).transpose(1, 2)
    w = weight(37, 61, torch.float32)
    result = ops.padded_linear(x, w)
    assert result.shape == (3, 4, 37)
    assert_no_worse_than_torch(result, x @ w.T, x.double() @ w.double().T)


def test_no_rows_give_no_rows():
    assert ops.padded_linear(random(0, 61), weight(37, 61, torch.bfloat16)).shape == (0, 37)


def test_silu_saturates_without_overflow(isa: str):
    x, w = torch.tensor([[300.0], [-300.0]]), torch.ones(1, 1)
    result = ops.norm_gate_up(x, torch.full((1,), 300.0), 1e-5, w, w, None, None)  # gate and up are +-300
    torch.testing.assert_close(result, torch.tensor([[9e4], [0.0]]), rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("rows", [2, 70])
def test_a_skipped_unit_does_nothing(isa: str, rows: int):
    x, w, residual = random(rows, 61), weight(37, 61, torch.float32), random(rows, 37)
    skip = torch.tensor([False, True])
    kept = ops.linear_residual(x, w, None, residual, skip, 1)
    assert torch.equal(kept, residual)
    assert kept.data_ptr() != residual.data_ptr()
    assert not ops.norm_gate_up(x, norm(61, torch.float32), 1e-5, w, w, None, None, skip, 1).any()
    assert not torch.equal(ops.linear_residual(x, w, None, residual, skip, 0), residual)


@needs_library
@pytest.mark.parametrize(
    ("change", "message"),
    WRONG_RESIDUAL,
)
def test_a_wrong_argument_is_named(change: dict, message: str):
    args = dict(x=random(4, 61), weight=weight(37, 61, torch.float32), bias=random(37), residual=random(4, 37))
    with pytest.raises(RuntimeError, match=message):
        ops.linear_residual(**{**args, **change})


def test_no_input_features_leave_the_bias_and_the_residual(isa: str):
    for rows in (3, 70):
        x, w, bias, residual = torch.empty(rows, 0), torch.empty(5, 0), torch.ones(5), torch.ones(rows, 5)
        assert torch.equal(ops.padded_linear(x, w, bias), torch.ones(rows, 5))
        assert torch.equal(ops.linear_residual(x, w, None, residual), residual)


def test_long_rows_of_half_precision_go_through_the_many_row_path_slice_by_slice(isa: str):
    check("padded_linear", [random(66, 16384), weight(300, 16384, torch.bfloat16), None], torch.bfloat16)


@pytest.mark.parametrize("rows", [4, 70])
def test_not_a_number_is_never_hidden(isa: str, rows: int):
    x, w = random(rows, 61), weight(37, 61, torch.float32)
    x[1, 7] = float("nan")
    for result in (
        ops.padded_linear(x, w),
        ops.norm_gate_up(x, norm(61, torch.float32), 1e-5, w, w, None, None),
        ops.norm_head(x, norm(61, torch.float32), 1e-5, w),
    ):
        assert torch.isnan(result[1]).all()
        assert torch.isfinite(result[[0, 2, 3]]).all()


@pytest.mark.parametrize("rows", [4, 70])
def test_a_gradient_is_refused_with_any_number_of_rows_and_never_silently_lost(rows: int):
    x, w, residual = random(rows, 61), torch.nn.Parameter(weight(37, 61, torch.float32)), random(rows, 37)
    with pytest.raises(RuntimeError, match=r"linear_residual has no gradient"):
        ops.linear_residual(x, w, None, residual)
    with pytest.raises(RuntimeError, match=r"linear_residual has no gradient"):
        ops.linear_residual(x.requires_grad_(), w.detach(), None, residual)
    with torch.no_grad():
        assert not ops.linear_residual(x, w, None, residual).requires_grad


@pytest.mark.parametrize("residual", [random(2, 3, 37), random(37), random(6, 1)])
def test_a_residual_of_another_shape_is_refused_by_kernel_and_reference(residual: torch.Tensor):
    x, w = random(6, 61), weight(37, 61, torch.float32)
    for function in (ops.linear_residual, D.linear_residual):
        with pytest.raises(RuntimeError, match="residual: the rows of x"):
            function(x, w, None, residual)


def test_the_reference_names_a_weight_or_bias_that_does_not_fit():
    with pytest.raises(RuntimeError, match=r"weight: a matrix \[\*, 61\]"):
        D.padded_linear(random(6, 61), weight(37, 60, torch.float32))
    with pytest.raises(RuntimeError, match="bias: a vector of 37"):
        D.padded_linear(random(6, 61), weight(37, 61, torch.float32), random(36))
