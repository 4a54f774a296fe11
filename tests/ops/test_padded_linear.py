"""Any width: rows that start on a boundary or anywhere, their ends, and the gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyprune import InputError, ops
from pyprune.strides import ROW_BYTES, has_padded_stride
from tests.judge import assert_no_worse_than_torch
from tests.ops.inputs import WEIGHTS, double, low, random, weight

NAN = float("nan")
reference = ops.reference.padded_linear


def misaligned(matrix: Tensor, offset: int = 1) -> Tensor:
    """The same values, `offset` elements after a boundary, among NaN before and after."""
    store = torch.full((matrix.numel() + 64,), NAN, dtype=matrix.dtype)
    return store[offset : offset + matrix.numel()].view(matrix.shape).copy_(matrix)


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("rows", [1, 4, 19, 70])
def test_every_length_of_a_row_s_end_is_right_and_nothing_behind_it_is_read(isa: str, rows: int, dtype: torch.dtype):
    for inner in [*range(1, 34), 63, 65, 95, 127, 199]:
        x, w = random(rows, inner), weight(9, inner, dtype)
        placed = misaligned(w)
        args = [x, w, None]
        result = ops.padded_linear(x, placed)
        assert_no_worse_than_torch(result, reference(*low(dtype, *args)), reference(*double(*args)), dtype=dtype)
        assert rows > 64 or torch.equal(result, ops.padded_linear(x, ops.pad_stride(w)))


@pytest.mark.parametrize("shape", [(33, 7155), (715, 129), (1, 199), (199, 1)])
@pytest.mark.parametrize("rows", [1, 4, 16, 64, 65])
def test_the_paper_s_kind_of_width_is_as_exact_as_pytorch_either_way_round(isa: str, rows: int, shape):
    args = [random(rows, shape[1]), weight(*shape, torch.bfloat16), random(shape[0], dtype=torch.bfloat16)]
    result = ops.padded_linear(args[0], misaligned(args[1], 3), args[2])
    plain, exact = reference(*low(torch.bfloat16, *args)), reference(*double(*args))
    assert_no_worse_than_torch(result, plain, exact, dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_not_a_number_in_the_last_element_is_not_hidden_by_what_masks_it(isa: str, rows: int, dtype: torch.dtype):
    for inner in (1, 17, 33, 61):
        x, w = random(rows, inner), weight(6, inner, dtype)
        w[3, -1] = NAN
        found = ops.padded_linear(x, ops.pad_stride(w)).isnan()
        assert found[:, 3].all()
        assert found.sum() == rows
        x[rows // 2, -1], w[3, -1] = NAN, 0.5
        found = ops.padded_linear(x, w).isnan()
        assert found[rows // 2].all()
        assert found.sum() == 6


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("shape", [(5, 7155), (3, 1), (1, 64), (4, 65)])
def test_padding_a_stride_changes_no_value_and_adds_less_than_a_boundary(shape: tuple[int, int], dtype: torch.dtype):
    w = misaligned(random(*shape, dtype=dtype))
    padded = ops.pad_stride(w)
    assert has_padded_stride(padded)
    assert padded.shape == w.shape
    assert padded.dtype == dtype
    assert torch.equal(padded, w)
    row = padded.stride(0) * w.itemsize
    assert row % ROW_BYTES == 0
    assert row - shape[1] * w.itemsize < ROW_BYTES
    assert ops.pad_stride(padded) is padded
    between = padded.as_strided((shape[0], padded.stride(0)), (padded.stride(0), 1))[:, shape[1] :]
    assert not between.any()


def test_a_weight_whose_rows_start_on_the_boundary_is_not_copied_and_one_that_starts_beside_it_is():
    w = weight(5, 96, torch.bfloat16)
    assert ops.pad_stride(w) is w
    for nothing in (torch.empty(0, 9), torch.empty(7, 0)):
        assert ops.pad_stride(nothing) is nothing
    beside = misaligned(w)
    assert not has_padded_stride(beside)
    assert torch.equal(ops.pad_stride(beside), w)
    transposed = random(64, 64).T
    assert ops.pad_stride(transposed).stride() == (64, 1)
    assert ops.pad_stride(weight(5, 24, torch.bfloat16), 16).stride() == (24, 1)
    assert ops.pad_stride(torch.empty(3, 7, dtype=torch.bfloat16, device="meta")).stride() == (32, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.ones(3),), r"pad_stride: \[3\] given"),
        (([[1.0]],), "pad_stride: list given"),
        ((torch.ones(3, 3), 6), "row_bytes 6: a multiple of 4"),
        ((torch.ones(3, 3), 0), "row_bytes 0"),
        ((torch.ones(3, 3), True), "row_bytes True"),
    ],
)
def test_what_cannot_be_padded_is_named(given: tuple, message: str):
    with pytest.raises(InputError, match=message):
        ops.pad_stride(*given)


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize(("lead", "out", "inner"), [((3,), 37, 61), ((2, 35), 5, 33), ((), 7, 19), ((4, 0), 3, 5)])
def test_gradients_are_those_of_torch_s_linear_in_float64(lead: tuple, out: int, inner: int, dtype: torch.dtype):
    x, w, b = random(*lead, inner, dtype=dtype), weight(out, inner, dtype), random(out, dtype=dtype)
    above = random(*lead, out, dtype=dtype)

    def gradients(function, cast) -> list[Tensor]:
        args = [cast(value).requires_grad_() for value in (x, w, b)]
        function(*args).backward(cast(above))
        return [arg.grad for arg in args]

    ours = gradients(ops.padded_linear, torch.clone)
    exact, plain = gradients(F.linear, Tensor.double), gradients(F.linear, torch.clone)
    for mine, theirs, true in zip(ours, plain, exact, strict=True):
        assert mine.dtype == dtype
        if true.numel():
            assert_no_worse_than_torch(mine, theirs, true, dtype=dtype)


def test_only_the_gradients_that_are_asked_for_are_made():
    x, w = random(3, 61), torch.nn.Parameter(weight(37, 61, torch.float32))
    ops.padded_linear(x, w).sum().backward()
    assert x.grad is None
    sums = [values.sum(0).expand(37, 61) for values in (x, x.double())]
    assert_no_worse_than_torch(w.grad, *sums)
    y = random(3, 61).requires_grad_()
    ops.padded_linear(y, w.detach(), torch.ones(37)).sum().backward()
    sums = [values.sum(0).expand(3, 61) for values in (w.detach(), w.detach().double())]
    assert_no_worse_than_torch(y.grad, *sums)
    with torch.no_grad():
        assert not ops.padded_linear(y, w).requires_grad


def test_float32_activations_on_half_precision_weights_get_float32_gradients():
    x, w = random(3, 61).requires_grad_(), weight(37, 61, torch.bfloat16)
    ops.padded_linear(x, w).pow(2).sum().backward()
    assert x.grad.dtype == torch.float32
    gradients = []
    for dtype in (torch.bfloat16, torch.float64):
        given = x.detach().to(dtype).requires_grad_()
        (given @ w.to(dtype).T).pow(2).sum().backward()
        gradients.append(given.grad)
    assert_no_worse_than_torch(x.grad, *gradients, dtype=torch.bfloat16)


def test_a_gradient_has_a_gradient():
    x, w = random(3, 7), weight(5, 7, torch.float32)
    gradients = []
    for function, dtype in ((ops.padded_linear, torch.float32), (F.linear, torch.float32), (F.linear, torch.float64)):
        given, by = x.to(dtype, copy=True).requires_grad_(), w.to(dtype, copy=True).requires_grad_()
        (first,) = torch.autograd.grad(function(given, by).pow(3).sum(), given, create_graph=True)
        gradients.append(torch.autograd.grad(first.pow(2).sum(), by)[0])
    assert_no_worse_than_torch(*gradients)


def test_forward_and_backward_compile_to_one_graph_each():
    args = random(3, 61), weight(37, 61, torch.float32), random(37)
    compiled = torch.compile(lambda *args: ops.padded_linear(*args).pow(2), backend="aot_eager", fullgraph=True)

    def plain(*args: Tensor) -> Tensor:
        return F.linear(*args).pow(2)

    gradients = []
    for function, dtype in ((compiled, torch.float32), (plain, torch.float32), (plain, torch.float64)):
        x, w, b = (value.to(dtype, copy=True).requires_grad_() for value in args)
        gradients.append(torch.autograd.grad(function(x, w, b).sum(), (x, w)))
    for ours, theirs, exact in zip(*gradients, strict=True):
        assert_no_worse_than_torch(ours, theirs, exact)
