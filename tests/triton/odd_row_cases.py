"""Weights, activations and results whose rows lie further apart than they are long, in the Triton kernels.

Memory that is asked for is filled with NaN.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.ops.reference import REFERENCE
from pyprune.strides import empty_rows, gpu_rows, gpu_stride, has_zero_gap, mark_zero_gap, widened
from tests import seeds
from tests.judge import assert_no_worse_than_torch
from tests.ops.inputs import double, low, norm, random, weight
from tests.triton.on_device import DEVICE, DTYPES, NAN, OPERATORS

from pyprune.triton_kernels import gemm, projections  # isort: skip

HIDDEN, WIDTH = 48, 61  # rows of 61 values start on 16 bytes in no dtype, those of 48 in each
FEW, MANY = [1, 2, 3, 18, 64], [65, 130]


@pytest.fixture(autouse=True)
def _not_a_number_in_new_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(gemm.VARIABLE, raising=False)
    torch.manual_seed(seeds.seed())
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def apart(rows: Tensor) -> Tensor:
    """The same values with NaN between the rows."""
    moved = empty_rows(*rows.shape, dtype=rows.dtype, device=DEVICE).copy_(rows)
    assert gap(moved).isnan().all()
    return moved


def gap(rows: Tensor) -> Tensor:
    """What lies behind the values of each row."""
    flat, width = rows.flatten(0, -2), rows.shape[-1]
    stride = gpu_stride(width, rows.itemsize)
    assert stride > width
    assert len(flat) == 1 or flat.stride(0) == stride  # torch gives a single row any stride
    return flat.as_strided((len(flat), stride), (stride, 1))[:, width:]


def here(*values: object) -> list:
    return [value.to(DEVICE) if isinstance(value, Tensor) else value for value in values]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", FEW)
def test_few_rows_have_the_same_bits_with_padded_operands_and_read_nothing_between_them(rows: int, dtype: torch.dtype):
    x, w = here(random(rows, 1, WIDTH, dtype=dtype), weight(HIDDEN, WIDTH, dtype))
    residual = random(rows, 1, HIDDEN, dtype=dtype).to(DEVICE)
    packed = OPERATORS["linear_residual"](x, w, None, residual)
    for both in ((apart(x), w), (x, apart(w)), (apart(x), apart(w)), (apart(x), gpu_rows(w))):
        assert torch.equal(OPERATORS["linear_residual"](*both, None, residual), packed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [*FEW, *MANY])
def test_gate_and_up_leave_rows_that_start_on_16_bytes(rows: int, dtype: torch.dtype):
    args = here(random(rows, 1, HIDDEN), norm(HIDDEN, dtype), 1e-5, *(weight(WIDTH, HIDDEN, dtype) for _ in range(2)))
    result = OPERATORS["norm_gate_up"](*args, None, None)
    reference = REFERENCE["norm_gate_up"]
    args = [a.cpu() if isinstance(a, Tensor) else a for a in args] + [None, None]
    assert_no_worse_than_torch(result.cpu(), reference(*low(dtype, *args)), reference(*double(*args)))
    assert result.shape == (rows, 1, WIDTH)
    assert result.stride() == (gpu_stride(WIDTH, 4), gpu_stride(WIDTH, 4), 1)
    # Up to 64 rows the gap is never written and never read. Beyond it is zero, and marked so.
    if rows > 64:
        assert (gap(result) == 0).all()
        assert has_zero_gap(result.flatten(0, 1))
    else:
        assert gap(result).isnan().all()
        assert not has_zero_gap(result.flatten(0, 1))


def test_a_skipped_sublayer_leaves_zeros_between_its_rows_too():
    gate, skip = weight(WIDTH, HIDDEN, torch.float32).fill_(NAN), torch.tensor([False, True])
    args = here(random(70, HIDDEN), norm(HIDDEN, torch.float32), 1e-5, gate, gate, None, None, skip, 1)
    result = OPERATORS["norm_gate_up"](*args)
    assert (widened(result, result.stride(0)) == 0).all()
    assert has_zero_gap(result)


@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (1, 5), (3, 2), (33, 3)])
def test_attention_leaves_a_tokens_heads_as_a_row_that_starts_on_16_bytes(tokens: int, rows: int):
    heads, head_dim, length = 3, 10, 90  # 30 values, 120 bytes, in one KV split and in several
    q, keys, values = random(rows, tokens, heads, head_dim), *random(2, rows, 1, length, head_dim)
    positions = torch.full((rows, 1), length - tokens) + torch.arange(tokens)
    args = (q, keys, values, positions, head_dim**-0.5)
    result = OPERATORS["decode_attention"](*here(*args))
    reference = REFERENCE["decode_attention"]
    assert_no_worse_than_torch(result.cpu(), reference(*args), reference(*double(*args)))
    assert result.shape == q.shape
    row = result.flatten(2)
    assert row.data_ptr() == result.data_ptr(), "a view"
    assert gap(row).isnan().all()
    skipped = OPERATORS["decode_attention"](*here(*args, torch.tensor([True]), 0))
    assert skipped.eq(0).all()
    assert gap(skipped.flatten(2)).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [3, 70])
def test_a_whole_ffn_sublayer_of_odd_width_is_as_exact_as_pytorch(rows: int, dtype: torch.dtype):
    x, n, (gate, up), down = random(rows, HIDDEN), norm(HIDDEN, dtype), weight(2 * WIDTH, HIDDEN, dtype).chunk(2), None
    down, b = weight(HIDDEN, WIDTH, dtype), random(WIDTH, dtype=dtype)
    results = []
    for place in (gpu_rows, apart, Tensor.contiguous):
        widths = here(gate, up, place(down.to(DEVICE)), x, n, b)
        a = OPERATORS["norm_gate_up"](widths[3], widths[4], 1e-5, *widths[:2], widths[5], widths[5])
        results.append(OPERATORS["linear_residual"](a, widths[2], None, widths[3]).cpu())

    def defined(x: Tensor, n: Tensor, gate: Tensor, up: Tensor, down: Tensor, b: Tensor) -> Tensor:
        a = REFERENCE["norm_gate_up"](x, n, 1e-5, gate, up, b, b)
        return REFERENCE["linear_residual"](a, down, None, x)

    args = (x, n, gate, up, down, b)
    for result in results:
        assert_no_worse_than_torch(result, defined(*low(dtype, *args)), defined(*double(*args)))
    assert rows > 64 or torch.equal(results[0], results[1])


def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the two GEMMs is called, in order."""
    calls: list[str] = []
    for name in ("gemm", "wide_linear"):
        original = getattr(projections, name)
        monkeypatch.setattr(
            projections, name, lambda *a, _name=name, _of=original, **k: (calls.append(_name), _of(*a, **k))[1]
        )
    return calls


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        # down with zeros between its rows, with NaN, packed; gate and up; a result of odd width that must be packed
        ("", ["gemm", "wide_linear", "wide_linear", "gemm", "gemm", "wide_linear"]),
        ("own", ["wide_linear"] * 5),
        ("torch", ["gemm"] * 6),
    ],
)
def test_torchs_gemm_takes_odd_widths_only_where_zeros_lie_between_the_rows(
    chosen: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(gemm.VARIABLE, chosen)
    calls = spied(monkeypatch)
    down = weight(HIDDEN, WIDTH, torch.float32).to(DEVICE)
    x, residual, n = here(random(70, WIDTH), random(70, HIDDEN), norm(HIDDEN, torch.float32))
    for w in (gpu_rows(down), apart(down), down):
        for rows in (x, apart(x)):
            result = OPERATORS["linear_residual"](rows, w, None, residual)
            exact = residual.double() + x.double() @ down.double().T
            assert_no_worse_than_torch(result, residual + x @ down.T, exact)
    assert calls[::2] == calls[1::2] == expected[:3]
    calls.clear()
    up = down.T.contiguous()
    args = (residual, n, 1e-5, up, up, None, None)
    result = OPERATORS["norm_gate_up"](*args)
    reference = REFERENCE["norm_gate_up"]
    assert_no_worse_than_torch(result, reference(*args), reference(*double(*args)))
    result = OPERATORS["padded_linear"](residual, up)
    assert result.is_contiguous()
    assert_no_worse_than_torch(result, residual @ up.T, residual.double() @ up.double().T)
    assert calls == expected[3:]


def test_what_torchs_gemm_is_handed_starts_on_16_bytes_in_every_row_and_is_zero_between_them():
    down, x = gpu_rows(weight(HIDDEN, WIDTH, torch.float32).to(DEVICE)), random(70, WIDTH).to(DEVICE)
    zero_gap = mark_zero_gap(gpu_rows(x))
    for rows in (x, apart(x), zero_gap):
        views = gemm.aligned_views(rows, down)
        assert all(view.shape[1] * view.itemsize % 128 == 0 for view in views)
        assert all(view.stride(0) == view.shape[1] and view.isfinite().all() for view in views)
        assert torch.equal(views[0][:, :WIDTH], x)
        assert views[1].data_ptr() == down.data_ptr()
        assert (views[0].data_ptr() == rows.data_ptr()) == (rows is zero_gap), "copied only where it has to be"
    part = down[:, :37]  # between these rows lies the rest of the matrix
    assert not has_zero_gap(part)
    assert not has_zero_gap(down[:, 24:])
    assert has_zero_gap(down[3:])
    narrow = x[:, :37]
    exact = narrow.double() @ part.double().T
    assert_no_worse_than_torch(gemm.gemm(narrow, part, None), narrow @ part.T, exact)


def test_an_unknown_choice_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(gemm.VARIABLE, "cublas")
    with pytest.raises(InputError, match=r"^PYPRUNE_GEMM=cublas: auto, own or torch is expected"):
        OPERATORS["padded_linear"](*here(random(70, HIDDEN), weight(16, HIDDEN, torch.float32)))
