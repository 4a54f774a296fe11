"""The Triton kernels against their reference implementations in float64.

`test_interpreter.py` runs this file in Triton's interpreter, in a process of its own (TRITON_INTERPRET=1), on CPU
tensors. On a machine with a GPU: python -m pytest tests/triton/cases.py
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from pyprune import triton_kernels
from pyprune.models import load_sizes
from pyprune.ops.reference import REFERENCE
from tests import seeds
from tests.judge import assert_no_worse_than_torch
from tests.ops.inputs import double, low, norm, random, weight
from tests.ops.test_attention import poisoned, qkv_arguments
from tests.triton.faster_interpreter import patch_the_language_once

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not triton_kernels.available():
    pytest.skip(str(triton_kernels.why_not()), allow_module_level=True)
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1 or a CUDA device", allow_module_level=True)

from pyprune.study import kernel_tuning, tuning_cases  # noqa: E402
from pyprune.triton_kernels import attention, configs, gemm  # noqa: E402
from pyprune.triton_kernels.candidates import candidates  # noqa: E402
from pyprune.triton_kernels.registration import OPERATORS  # noqa: E402

if INTERPRETED:
    patch_the_language_once()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.float32, torch.bfloat16, torch.float16]
ROWS = [1, 2, 3, 18, 33, 64, 65]  # sums in registers, tensor cores with 16, 32 and 64 rows, torch's GEMM
SIZES = [(1, 1), (5, 31), (3, 257), (37, 61), (101, 40)]  # (out, in); the third splits K into many
CASES = [  # batch, tokens, heads, kv_heads, head_dim, hidden, cache rows
    (1, 1, 3, 1, 64, 96, 90),
    (3, 1, 1, 1, 16, 200, 30),
    (3, 5, 4, 2, 10, 33, 40),
    (2, 33, 2, 2, 22, 50, 40),
    (2, 3, 8, 1, 32, 40, 130),
    (20, 1, 2, 2, 16, 24, 60),
]
NAN = float("nan")


@pytest.fixture(autouse=True)
def _seed(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("extras", [False, True], ids=["plain", "bias+qknorm"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_qkv_is_exact_and_lands_in_its_own_rows_of_the_cache(case: tuple, extras: bool, dtype: torch.dtype):
    args = qkv_arguments(case, dtype, extras)
    positions = args[-1]
    keys, values = poisoned(case, dtype), poisoned(case, dtype)
    plain_keys, plain_values = poisoned(case, dtype), poisoned(case, dtype)
    true_keys, true_values = poisoned(case, torch.float64), poisoned(case, torch.float64)
    q = run("norm_qkv_rope", *args, keys, values)
    reference = REFERENCE["norm_qkv_rope"]
    plain = reference(*low(dtype, *args), plain_keys, plain_values)
    assert_no_worse_than_torch(q, plain, reference(*double(*args), true_keys, true_values))
    row = torch.arange(len(positions)).unsqueeze(1)
    for ours, theirs, exact in ((keys, plain_keys, true_keys), (values, plain_values, true_values)):
        written = [c[row, :, positions] for c in (ours, theirs, exact)]
        assert_no_worse_than_torch(*written)
        assert torch.equal(torch.isnan(ours), torch.isnan(exact)), "rows outside the positions were touched"


def test_weights_of_one_projection_may_be_padded_and_biased_alone():
    case = (2, 2, 4, 2, 10, 61, 40)
    args = qkv_arguments(case, torch.float32, True)
    store = torch.full((20, 64), NAN)
    store[:, :61] = args[4]
    args[4] = store[:, :61]
    args[6], args[8], args[9], args[10] = None, None, None, None  # only k has a bias
    kinds = (torch.float32, torch.float32, torch.float64)
    ours, theirs, exact = ([poisoned(case, dtype) for _ in range(2)] for dtype in kinds)
    reference = REFERENCE["norm_qkv_rope"]
    q, plain = run("norm_qkv_rope", *args, *ours), reference(*args, *theirs)
    assert_no_worse_than_torch(q, plain, reference(*double(*args), *exact))
    for caches in zip(ours, theirs, exact, strict=True):
        written = ~torch.isnan(caches[2])
        assert written.any()
        assert torch.equal(~torch.isnan(caches[0]), written)
        assert_no_worse_than_torch(*(cache[written] for cache in caches))


@pytest.mark.parametrize("case", [CASES[2], CASES[3]], ids=str)
def test_a_skipped_sublayer_leaves_the_cache_alone(case: tuple):
    batch, tokens, heads, _, head_dim, *_ = case
    args = qkv_arguments(case, torch.float32, True)
    args[3] = torch.full_like(args[3], NAN)
    keys, values = poisoned(case, torch.float32), poisoned(case, torch.float32)
    skip = torch.tensor([False, True])
    assert torch.equal(run("norm_qkv_rope", *args, keys, values, skip, 1), torch.zeros(batch, tokens, heads, head_dim))
    assert torch.isnan(keys).all()
    assert torch.isnan(values).all()
    q = random(batch, tokens, heads, head_dim)
    assert torch.equal(run("decode_attention", q, keys, values, args[-1], 1.0, skip, 1), torch.zeros_like(q))


def test_a_position_outside_the_cache_gives_nan_in_its_row_and_touches_no_memory():
    case = CASES[2]
    args = qkv_arguments(case, torch.float32, False)
    good = args[-1]
    args[-1] = good.clone()
    args[-1][2, 4], args[-1][0, 1] = 40, -1
    lost = torch.zeros(3, 5, dtype=torch.bool)
    lost[2, 4] = lost[0, 1] = True
    keys, values = poisoned(case, torch.float32), poisoned(case, torch.float32)
    q = run("norm_qkv_rope", *args, keys, values)
    assert torch.equal(q.isnan().all(-1).all(-1), lost)
    assert torch.equal(q.isnan().any(-1).any(-1), lost)
    row = torch.arange(3).unsqueeze(1)
    written = torch.zeros(3, 40, dtype=torch.bool)
    written[row.expand(3, 5)[~lost], good[~lost]] = True
    assert torch.equal(~keys.isnan().all(-1).all(1), written)
    result = run("decode_attention", random(3, 5, 4, 10), random(*keys.shape), random(*keys.shape), args[-1], 1.0)
    assert torch.equal(result.isnan().all(-1).all(-1), lost)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*CASES[:5], (2, 1, 2, 2, 40, 0, 90)], ids=str)
def test_attention_is_exact_and_sees_nothing_past_its_position(case: tuple, dtype: torch.dtype):
    batch, tokens, heads, _, head_dim, _, length = case
    positions = torch.randint(0, length - tokens + 1, (batch, 1)) + torch.arange(tokens)
    keys, values = poisoned(case, dtype), poisoned(case, dtype)
    for b in range(batch):  # NaN in every row that no query of this sequence may see
        seen = int(positions[b, -1]) + 1
        keys[b, :, :seen] = torch.randn_like(keys[b, :, :seen])
        values[b, :, :seen] = torch.randn_like(values[b, :, :seen])
    q = random(batch, tokens, heads, head_dim) * 2
    clean = [c.nan_to_num() for c in (keys, values)]
    reference = REFERENCE["decode_attention"]
    plain = reference(q.to(dtype), *clean, positions, head_dim**-0.5)
    true = reference(*double(q, *clean), positions, head_dim**-0.5)
    result = run("decode_attention", q, keys, values, positions, head_dim**-0.5)
    assert_no_worse_than_torch(result, plain, true)


@pytest.mark.parametrize(
    ("window", "dtype"), [(w, d) for d in DTYPES for w in (0, 1, 7, 32, 40) if d == torch.float32 or w == 7], ids=str
)
def test_a_query_sees_its_window_from_the_first_row_on_and_always_itself(window: int, dtype: torch.dtype):
    batch, heads, kv_heads, head_dim, length = 4, 6, 2, 18, 110  # in the interpreter a KV split is 32 rows
    positions = torch.tensor([[3, 4], [31, 32], [64, 65], [109, 2]])
    first = torch.tensor([0, 30, 65, 20])
    keys, values = (torch.full((batch, kv_heads, length, head_dim), NAN, dtype=dtype) for _ in range(2))
    for b in range(batch):  # NaN in every row that neither query of the sequence may see
        for position in positions[b].tolist():
            start = min(position, max(int(first[b]), position - window + 1 if window else 0))
            for cache in (keys, values):
                cache[b, :, start : position + 1] = torch.randn_like(cache[b, :, start : position + 1])
    q = random(batch, 2, heads, head_dim) * 2
    clean = [c.nan_to_num() for c in (keys, values)]
    reference = REFERENCE["decode_attention"]
    for seen in (slice(0, 1), slice(1, 2), slice(0, 2)):  # each alone: what one may see, the other may not
        caches = clean if seen == slice(0, 2) else [keys, values]
        arguments = (positions[:, seen].contiguous(), 0.3, None, 0, first, window)
        result = run("decode_attention", q[:, seen], *caches, *arguments)
        plain = reference(q[:, seen].to(dtype), *clean, *arguments)
        assert_no_worse_than_torch(result, plain, reference(*double(q[:, seen], *clean), *arguments))


def test_a_window_of_many_queries_is_exact_too():
    case = (2, 33, 2, 2, 22, 50, 90)
    positions = torch.tensor([[5], [57]]) + torch.arange(33)
    q, keys, values = random(2, 33, 2, 22), random(2, 2, 90, 22), random(2, 2, 90, 22)
    arguments = (positions, 0.3, None, 0, torch.tensor([7, 60]), 20)
    reference = REFERENCE["decode_attention"]
    result, plain = run("decode_attention", q, keys, values, *arguments), reference(q, keys, values, *arguments)
    assert_no_worse_than_torch(result, plain, reference(*double(q, keys, values), *arguments))
    assert case[1] > 16, "so many that the cache is not split"


@pytest.mark.parametrize("window", [0, 5])
def test_a_first_row_outside_the_cache_gives_nan_in_its_sequence_and_touches_no_memory(window: int):
    q, keys, values = random(4, 2, 2, 10), random(4, 1, 70, 10), random(4, 1, 70, 10)
    positions = torch.tensor([[60, 61]] * 4)
    result = run("decode_attention", q, keys, values, positions, 1.0, None, 0, torch.tensor([0, 70, -1, 69]), window)
    assert result.isnan().flatten(1).all(1).tolist() == [False, True, True, False]
    assert not result[[0, 3]].isnan().any()


@pytest.mark.parametrize("tokens", [2, 33])
def test_more_sequences_than_a_grid_takes_give_the_same_bits(monkeypatch: pytest.MonkeyPatch, tokens: int):
    q, keys, values = random(5, tokens, 4, 10), random(6, 2, 90, 10), random(6, 2, 90, 10)
    positions = torch.tensor([[3], [50], [21], [9], [55]]) + torch.arange(tokens)
    window = (None, 0, torch.tensor([0, 7, 20, 2, 50]), 40)
    for rest in ((), window) if tokens == 2 else (window,):
        whole = run("decode_attention", q, keys, values, positions, 0.3, *rest)
        with monkeypatch.context() as patch:
            patch.setattr(attention, "MAX_GRID", (100, 100, 5))  # two sequences of two KV heads
            assert torch.equal(run("decode_attention", q, keys, values, positions, 0.3, *rest), whole)


def test_not_a_number_is_never_hidden_and_minus_infinity_weighs_nothing():
    q, keys, values = torch.ones(1, 1, 1, 8), random(1, 1, 110, 8), random(1, 1, 110, 8)
    positions = torch.tensor([[109]])
    keys[0, 0, :70] = float("-inf")  # two whole KV splits
    check("decode_attention", [q, keys, values, positions, 1.0], torch.float32)
    keys[0, 0, 3, :2] = torch.tensor([NAN, 0.0])
    assert run("decode_attention", q, keys, values, positions, 1.0).isnan().all()


@pytest.mark.parametrize("tokens", [3, 33])  # skinny with a q/k-norm, GEMM
@pytest.mark.parametrize("extras", [False, True], ids=["plain", "bias+qknorm"])
def test_slots_say_where_keys_and_values_go_and_positions_how_they_are_turned(tokens: int, extras: bool):
    case = (2, tokens, 3, 1, 22, 50, 60)
    args = qkv_arguments(case, torch.float32, extras)
    args[11], args[12] = args[11].repeat(2, 1), args[12].repeat(2, 1)
    args[-1] = args[-1] + 60  # positions may lie beyond the cache's rows
    slots = torch.stack([torch.randperm(60)[:tokens] for _ in range(2)])
    ours, plain = [poisoned(case, torch.float32) for _ in range(2)], [poisoned(case, torch.float32) for _ in range(2)]
    exact = [poisoned(case, torch.float64) for _ in range(2)]
    reference = REFERENCE["norm_qkv_rope"]
    q = run("norm_qkv_rope", *args, *ours, None, 0, slots)
    theirs = reference(*args, *plain, slots=slots)
    assert_no_worse_than_torch(q, theirs, reference(*double(*args), *exact, slots=slots))
    row = torch.arange(2).unsqueeze(1)
    for mine, their, true in zip(ours, plain, exact, strict=True):
        assert_no_worse_than_torch(*(cache[row, :, slots] for cache in (mine, their, true)))
        assert torch.equal(mine.isnan(), true.isnan()), "rows outside the slots were touched"


def test_a_slot_outside_the_cache_gives_nan_in_its_row_and_touches_no_memory():
    case = CASES[2]
    args = qkv_arguments(case, torch.float32, False)
    slots = torch.arange(15).view(3, 5)
    slots[2, 4], slots[0, 1] = 40, -1
    lost = torch.zeros(3, 5, dtype=torch.bool)
    lost[2, 4] = lost[0, 1] = True
    keys, values = poisoned(case, torch.float32), poisoned(case, torch.float32)
    q = run("norm_qkv_rope", *args, keys, values, None, 0, slots)
    assert torch.equal(q.isnan().all(-1).all(-1), lost)
    assert torch.equal(q.isnan().any(-1).any(-1), lost)
    assert int((~keys.isnan().all(-1).all(1)).sum()) == 13


def test_attention_of_one_sequence_has_the_same_bits_in_any_batch():
    q, keys, values = random(3, 1, 6, 16), random(3, 2, 100, 16), random(3, 2, 100, 16)
    positions = torch.tensor([[0], [31], [99]])
    whole = run("decode_attention", q, keys, values, positions, 0.25)
    for b in range(3):
        alone = run("decode_attention", *(t[b : b + 1] for t in (q, keys, values, positions)), 0.25)
        assert torch.equal(alone, whole[b : b + 1])
    rest = (0.25, None, 0, torch.tensor([0, 3, 40]), 45)
    whole = run("decode_attention", q, keys, values, positions, *rest)
    for b in range(3):
        sequence = (t[b : b + 1] for t in (q, keys, values, positions))
        assert torch.equal(run("decode_attention", *sequence, *rest[:3], rest[3][b : b + 1], 45), whole[b : b + 1])


def test_scores_of_any_size_do_not_overflow():
    q, keys = torch.full((1, 1, 2, 8), 1e4), torch.full((1, 1, 70, 8), 1e4)
    keys[0, 0, 7] *= 2
    values = random(1, 1, 70, 8)
    result = run("decode_attention", q, keys, values, torch.tensor([[69]]), 1.0)
    torch.testing.assert_close(result[0, 0, 1], values[0, 0, 7])


def test_caches_may_be_views_and_larger_than_the_batch():
    case = (2, 1, 4, 2, 10, 33, 12)
    args = qkv_arguments(case, torch.float32, False)
    store = torch.zeros(2, 5, 12, 2, 10)  # [.., batch, length, heads, dim]: another memory order
    keys, values = store[0].transpose(1, 2), store[1].transpose(1, 2)
    dense = [torch.zeros(5, 2, 12, 10) for _ in range(2)]
    q = run("norm_qkv_rope", *args, keys, values)
    assert torch.equal(q, run("norm_qkv_rope", *args, *dense))
    assert torch.equal(keys, dense[0])
    assert torch.equal(values, dense[1])
    ours = run("decode_attention", q, keys, values, args[-1], 1.0)
    assert torch.equal(ours, run("decode_attention", q, *dense, args[-1], 1.0))


@pytest.mark.parametrize(("rows", "vocab", "hidden"), [(1, 1, 1), (3, 37, 61), (20, 300, 33), (130, 70, 17)])
def test_loss_equals_log_softmax_across_tiles_of_rows_and_vocabulary(rows: int, vocab: int, hidden: int):
    x, w, target = random(rows, hidden) * 3, weight(vocab, hidden, torch.float32), torch.randint(0, vocab, (rows,))
    check("linear_cross_entropy", [x, w, target], torch.float32, tiny=2e-6)
    extras = [norm(hidden, torch.float32), 1e-5, random(vocab)]
    check("linear_cross_entropy", [x, w, target, *extras], torch.float32, tiny=2e-6)


def test_more_rows_than_are_taken_at_once_and_bands_of_row_tiles(monkeypatch: pytest.MonkeyPatch):
    from pyprune.triton_kernels import cross_entropy

    monkeypatch.setattr(cross_entropy, "ROWS_AT_ONCE", 150)
    monkeypatch.setattr(cross_entropy, "_BAND", 2)  # 150 rows are 3 tiles: one band of 2, one of 1
    x, w, target = random(2, 160, 17), weight(70, 17, torch.float32), torch.randint(0, 70, (2, 160))
    check("linear_cross_entropy", [x, w, target], torch.float32, tiny=2e-6)


def test_ignored_rows_cost_nothing_and_do_not_disturb_the_others():
    x, w, target = random(2, 5, 16), weight(50, 16, torch.float32), torch.randint(0, 50, (2, 5))
    masked = target.clone()
    masked[1, 2:] = -100
    whole, part = run("linear_cross_entropy", x, w, target), run("linear_cross_entropy", x, w, masked)
    assert torch.equal(part[1, 2:], torch.zeros(3))
    assert torch.equal(part[0], whole[0])
    inside = run("linear_cross_entropy", x, w, target, None, 0.0, None, int(target[0, 0]))  # a valid index ignored
    assert inside[0, 0] == 0


@pytest.mark.parametrize("bad", [-1, 50, -101])
def test_a_target_outside_the_vocabulary_gives_nan_in_its_row(bad: int):
    x, w = random(3, 16), weight(50, 16, torch.float32)
    losses = run("linear_cross_entropy", x, w, torch.tensor([0, bad, 49]))
    assert losses.isnan().tolist() == [False, True, False]


def test_logits_of_any_size_do_not_overflow():
    x, w = torch.tensor([[1.0], [-1.0]]), torch.tensor([[3e4], [-3e4], [0.0]])
    losses = run("linear_cross_entropy", x, w, torch.tensor([0, 0]))
    torch.testing.assert_close(losses, torch.tensor([0.0, 6e4]))


@pytest.mark.parametrize(
    ("rows", "vocab", "begin", "end"),
    [(3, 2400, 0, 2300)] + [(r, 300, *tiles) for r in (3, 70) for tiles in ((128, 256), (0, 256), (0, 300))],
)
def test_tiles_of_minus_infinity_weigh_nothing(rows: int, vocab: int, begin: int, end: int):
    # 2300 entries are more tiles than are reduced at once. A row of nothing else has no loss, as in PyTorch.
    x, w, bias = random(rows, 7), weight(vocab, 7, torch.float32), random(vocab)
    bias[begin:end] = -float("inf")
    target = torch.randint(0, vocab, (rows,))
    target[0], target[1] = -100, begin  # of which the second cannot be
    args = [x, w, target, None, 0.0, bias]
    plain, losses = REFERENCE["linear_cross_entropy"](*args), run("linear_cross_entropy", *args)
    assert torch.equal(losses.isnan(), plain.isnan())
    assert torch.equal(losses.isinf(), plain.isinf())
    assert losses[1].isinf() if end < vocab or begin else losses[1:].isnan().all()
    exact = REFERENCE["linear_cross_entropy"](*double(*args))
    shown = exact.isfinite()
    assert torch.equal(losses.isfinite(), shown)
    assert_no_worse_than_torch(losses[shown], plain[shown], exact[shown], tiny=2e-6)


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
    [
        (dict(x=random(4, 60)), "weight"),
        (dict(weight=weight(37, 61, torch.float32).double()), "weight"),
        (dict(weight=weight(61, 37, torch.float32).T), "weight"),
        (dict(bias=random(36)), "bias"),
        (dict(residual=random(3, 37)), "residual"),
        (dict(residual=random(4, 36)), "residual"),
        (dict(residual=random(4, 37, dtype=torch.float16)), "residual"),
        (dict(skip=torch.tensor([0, 1])), "skip"),
        (dict(skip=torch.tensor([True]), sublayer=1), "sublayer: 1"),
    ],
)
def test_a_wrong_argument_is_named(change: dict, message: str):
    args = dict(x=random(4, 61), weight=weight(37, 61, torch.float32), bias=random(37), residual=random(4, 37))
    args.update(skip=None, sublayer=0)
    with pytest.raises(RuntimeError, match=f"^{message}"):
        run("linear_residual", *{**args, **change}.values())


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, random(3, 33), "x: "),
        (1, norm(32, torch.float32), "norm"),
        (3, weight(41, 33, torch.float32), "q_weight"),
        (4, weight(10, 33, torch.float32), "k_weight"),
        (4, weight(20, 33, torch.bfloat16), "k_weight"),
        (6, random(39), "q_bias"),
        (11, random(40, 4), "cos, sin"),
        (13, torch.zeros(3, 5), "positions"),
        (15, random(3, 2, 39, 10), "v_cache"),
        (18, torch.zeros(3, 4, dtype=torch.int64), "slots"),
    ],
)
def test_a_wrong_argument_of_the_projections_for_attention_is_named(place: int, value: Tensor, message: str):
    case = CASES[2]
    caches = [poisoned(case, torch.float32) for _ in range(2)]
    args = [*qkv_arguments(case, torch.float32, False), *caches, None, 0, torch.zeros(3, 5, dtype=torch.int64)]
    args[place] = value
    with pytest.raises(RuntimeError, match=message):
        run("norm_qkv_rope", *args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(first=torch.tensor([0, 1])), "first"),
        (dict(first=torch.tensor([0.0, 1.0, 2.0])), "first"),
        (dict(window=-2), "window: -2 given"),
    ],
)
def test_a_wrong_first_row_or_window_is_named(change: dict, message: str):
    q, cache, positions = random(3, 5, 4, 10), random(3, 2, 40, 10), torch.zeros(3, 5, dtype=torch.int64)
    rest = {"first": None, "window": 0, **change}
    with pytest.raises(RuntimeError, match=f"^{message}"):
        run("decode_attention", q, cache, cache, positions, 0.3, None, 0, rest["first"], rest["window"])


def test_an_argument_on_another_device_is_named():
    x, w = random(4, 61).to(DEVICE), weight(37, 61, torch.float32).to(DEVICE)
    with pytest.raises(RuntimeError, match=r"^bias: a tensor on"):
        OPERATORS["padded_linear"](x, w, torch.empty(37, device="meta"))
