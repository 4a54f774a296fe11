"""The Triton kernels that multiply by weights, against their reference implementations in float64."""

from __future__ import annotations

import pytest
import torch

from pyprune.models import load_sizes
from tests.judge import assert_no_worse_than_torch
from tests.ops.inputs import WRONG_RESIDUAL, norm, random, weight
from tests.triton.on_device import DEVICE, DTYPES, INTERPRETED, NAN, OPERATORS, check, run, seeded  # noqa: F401

from pyprune.study import kernel_tuning, tuning_cases  # isort: skip
from pyprune.triton_kernels import configs, gemm  # isort: skip
from pyprune.triton_kernels.candidates import candidates  # isort: skip

ROWS = [1, 2, 3, 18, 33, 64, 65]  # sums in registers, tensor cores with 16, 32 and 64 rows, torch's GEMM
SIZES = [(1, 1), (5, 31), (3, 257), (37, 61), (101, 40)]  # (out, in); the third splits K into many


@pytest.mark.parametrize(
    ("rows", "dtype"), [(r, d) for d in DTYPES for r in ROWS if d == torch.float32 or r in (1, 18, 65)], ids=str
)
def test_every_projection_is_as_exact_as_pytorch_at_odd_sizes(rows: int, dtype: torch.dtype):
    for out, inner in SIZES if dtype == torch.float32 and rows in (1, 3) else SIZES[2:4]:
        x, w, b = random(rows, inner), weight(out, inner, dtype), random(out, dtype=dtype)
        n, up = norm(inner, dtype), weight(out, inner, dtype)
        check("padded_linear", [x, w, b], dtype)
        check("linear_residual", [x, w, None, random(rows, out)], dtype)
        check("norm_head", [x, n, 1e-5, w, b], dtype)
        check("norm_gate_up", [x, n, 1e-5, w, up, b, random(out, dtype=dtype)], dtype)
        check("norm_gate_up", [x, n, 1e-5, w, up, None, None], dtype)


def test_many_rows_at_odd_sizes_run_in_bands_of_tiles_and_in_splits_of_k():
    rows = 130  # three tiles; 65 are two, above
    for out, inner in ((5, 257), (37, 61), (205, 33), (40, 24)):  # the last is for torch's GEMM
        x, w, b = random(rows, inner), weight(out, inner, torch.float32), random(out)
        up, n = weight(out, inner, torch.float32), norm(inner, torch.float32)
        check("padded_linear", [x, w, b], torch.float32)
        check("linear_residual", [x, w, b, random(rows, out)], torch.float32)
        check("norm_gate_up", [x, n, 1e-5, w, up, b, random(out)], torch.float32)
        assert gemm.takes(w) == (out == 40)
    arch = configs.architecture(DEVICE)
    for pair in (False, True):
        tile = configs.gemm_tile(arch, torch.float32, pair)
        counts = [-(-rows // tile.block_m) * -(-out // tile.block_n) for out in (5, 205)]
        splits = [configs.splits_for(arch, count, 257, tile)[0] for count in counts]
        assert splits[0] > 1 or not INTERPRETED
        assert splits[1] == 1 or not INTERPRETED


def test_what_lies_behind_the_end_of_k_is_never_read_for_many_rows_either():
    store, ups = torch.full((37, 80), NAN), torch.full((37, 80), NAN)
    store[:, :61], ups[:, :61] = weight(37, 61, torch.float32), weight(37, 61, torch.float32)
    rows = torch.full((70, 64), NAN)
    rows[:, :61] = random(70, 61)
    w, up, x = store[:, :61], ups[:, :61], rows[:, :61]
    check("padded_linear", [x, w, None], torch.float32)
    n = norm(61, torch.float32)
    check("norm_gate_up", [x, n, 1e-5, w, up, None, None], torch.float32)
    w[4, -1] = NAN
    assert run("padded_linear", x, w).isnan().sum() == 70


def test_the_sizes_above_reach_the_split_and_the_unsplit_form():
    arch = configs.architecture(DEVICE)
    splits = set()
    for out, inner in SIZES:
        tile = configs.skinny_tile(arch, 3, torch.float32, pair=False)
        splits.add(configs.splits_for(arch, -(-out // tile.block_n), inner, tile)[0] > 1)
    assert splits == {True, False}


@pytest.mark.parametrize("rows", [1, 3, 70])
def test_activations_in_the_weights_dtype_give_results_in_it(rows: int):
    x, w, n = random(rows, 61, dtype=torch.float16), weight(37, 61, torch.float16), norm(61, torch.float16)
    assert run("norm_gate_up", x, n, 1e-5, w, w.flip(0).contiguous(), None, None).dtype == torch.float16
    assert run("norm_head", x, n, 1e-5, w).dtype == torch.float32
    check("padded_linear", [x, w, None], torch.float16)
    check("linear_residual", [x, w, None, random(rows, 37, dtype=torch.float16)], torch.float16)


def test_small_activations_keep_their_precision_in_float16():
    x, w, n = random(5, 160) * 1e-3, weight(37, 160, torch.float16), norm(160, torch.float16) / 50
    args = [x, n, 1e-12, w, None]
    check("norm_head", args, torch.float16)
    check("norm_gate_up", [x, n * 50, 1e-12, w, w.flip(0).contiguous(), None, None], torch.float16)


@pytest.mark.parametrize("rows", [1, 4, 80])
def test_rows_of_a_weight_may_lie_apart_and_what_lies_between_is_never_read(rows: int):
    store = torch.full((37, 80), NAN)
    store[:, :61] = weight(37, 61, torch.float32)
    x = random(rows, 61)
    for out in (37, 36):  # the last row's padding may lie outside the tensor's memory too
        w = store[:out, :61]
        result = run("padded_linear", x, w)
        assert_no_worse_than_torch(result, x @ w.T, x.double() @ w.double().T)
        assert torch.equal(result, run("padded_linear", x, w.contiguous())) or rows > configs.SKINNY_ROWS


def test_leading_dimensions_and_strided_activations_are_kept_and_followed():
    x, w = random(3, 61, 4).transpose(1, 2), weight(37, 61, torch.float32)
    store = torch.full((5, 70), NAN)
    store[:, :61] = random(5, 61)
    assert run("padded_linear", x, w).shape == (3, 4, 37)
    check("padded_linear", [x, w, None], torch.float32)
    check("padded_linear", [store[:, :61], w, None], torch.float32)


def test_no_rows_give_no_rows():
    w, n = weight(37, 61, torch.float32), norm(61, torch.float32)
    x = random(0, 61)
    assert run("padded_linear", x, w).shape == (0, 37)
    assert run("linear_residual", x, w, None, random(0, 37)).shape == (0, 37)
    assert run("norm_gate_up", x, n, 1e-5, w, w, None, None).shape == (0, 37)
    assert run("norm_head", x, n, 1e-5, w).shape == (0, 37)
    assert run("linear_cross_entropy", x, w, torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("rows", [2, 70])
def test_silu_saturates_without_overflow(rows: int):
    x, w = torch.full((rows, 1), -300.0), torch.ones(1, 1)
    x[0] = 300.0
    result = run("norm_gate_up", x, torch.full((1,), 300.0), 1e-5, w, w, None, None)  # gate and up are +-300
    torch.testing.assert_close(result, (x > 0) * 9e4, rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("rows", [1, 3, 70])
def test_a_skipped_sublayer_does_nothing_whatever_its_weights_hold(rows: int):
    x, broken, residual = random(rows, 257), torch.full((5, 257), NAN), random(rows, 5)
    skip = torch.tensor([False, True])
    assert torch.equal(run("linear_residual", x, broken, None, residual, skip, 1), residual)
    assert torch.equal(
        run("norm_gate_up", x, norm(257, torch.float32), 1e-5, broken, broken, None, None, skip, 1),
        torch.zeros(rows, 5),
    )
    assert run("linear_residual", x, broken, None, residual, skip, 0).isnan().all()
    live = weight(5, 257, torch.float32)
    check("linear_residual", [x, live, None, residual, skip, 0], torch.float32)


@pytest.mark.parametrize("rows", [1, 16, 64])
def test_what_tuning_tries_gives_the_fixed_configurations_results(rows: int, monkeypatch: pytest.MonkeyPatch):
    if INTERPRETED:
        monkeypatch.setattr(tuning_cases, "LOSS_ROWS", 150)  # two tiles of rows
    arch = configs.architecture(DEVICE)
    sizes = load_sizes("shape:hidden=48,blocks=1,heads=6,kv_heads=2,head_dim=10,ffn=71,vocab=131")
    todo = [case for case in tuning_cases.cases(sizes, arch) if case.shape.rows == rows and case.shape.columns < 2048]
    timed = lambda runs: {config: [1.0] for config in runs}  # noqa: E731
    for case in todo:
        tiles = candidates(case.operator, case.dtype, case.shape, arch)
        measured = kernel_tuning.measure(case, [tiles[0], tiles[1], tiles[-1]], DEVICE, timed)
        assert measured.refused == {}, case.operator
    names = {case.operator for case in todo}
    skinny = {"norm_qkv_rope", "linear_residual", "norm_gate_up", "norm_head"}
    assert names == skinny | {1: set(), 16: {"decode_attention"}, 64: {"linear_cross_entropy"}}[rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [*WRONG_RESIDUAL, (dict(residual=random(4, 37, dtype=torch.float16)), "residual")],
)
def test_a_wrong_argument_is_named(change: dict, message: str):
    args = dict(x=random(4, 61), weight=weight(37, 61, torch.float32), bias=random(37), residual=random(4, 37))
    args.update(skip=None, sublayer=0)
    with pytest.raises(RuntimeError, match=f"^{message}"):
        run("linear_residual", *{**args, **change}.values())


def test_an_argument_on_another_device_is_named():
    x, w = random(4, 61).to(DEVICE), weight(37, 61, torch.float32).to(DEVICE)
    with pytest.raises(RuntimeError, match=r"^bias: a tensor on"):
        OPERATORS["padded_linear"](x, w, torch.empty(37, device="meta"))
