from __future__ import annotations

import pytest
import torch

from pyprune import ops
from tests.judge import assert_no_worse_than_torch
from tests.library import needs_library
from tests.ops.attention_inputs import CASES, WRONG_QKV, poisoned, qkv_arguments, up_to_its_position, within_windows
from tests.ops.inputs import WEIGHTS, double, low, random

D = ops.reference


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("extras", [False, True], ids=["plain", "bias+qknorm"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_qkv_is_exact_and_lands_in_its_own_rows_of_the_cache(isa: str, case: tuple, extras: bool, dtype: torch.dtype):
    args = qkv_arguments(case, dtype, extras)
    positions = args[-1]
    keys, values = poisoned(case, dtype), poisoned(case, dtype)
    plain_keys, plain_values = poisoned(case, dtype), poisoned(case, dtype)
    true_keys, true_values = poisoned(case, torch.float64), poisoned(case, torch.float64)
    q = ops.norm_qkv_rope(*args, keys, values)
    plain = D.norm_qkv_rope(*low(dtype, *args), plain_keys, plain_values)
    true = D.norm_qkv_rope(*double(*args), true_keys, true_values)
    assert_no_worse_than_torch(q, plain, true)
    row = torch.arange(len(positions)).unsqueeze(1)
    for ours, theirs, exact in ((keys, plain_keys, true_keys), (values, plain_values, true_values)):
        written = [c[row, :, positions] for c in (ours, theirs, exact)]
        assert_no_worse_than_torch(*written)
        assert torch.equal(torch.isnan(ours), torch.isnan(exact)), "rows outside the positions were touched"


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_is_exact_and_sees_nothing_past_its_position(isa: str, case: tuple, dtype: torch.dtype):
    q, keys, values, positions = up_to_its_position(case, dtype)
    head_dim = q.shape[-1]
    result = ops.decode_attention(q, keys, values, positions, head_dim**-0.5)
    # The reference multiplies hidden values by zero, so it gets them as zeros.
    clean = [c.nan_to_num() for c in (keys, values)]
    plain = D.decode_attention(q.to(dtype), *clean, positions, head_dim**-0.5)
    true = D.decode_attention(*double(q, *clean), positions, head_dim**-0.5)
    assert_no_worse_than_torch(result, plain, true)


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("window", [0, 1, 7, 256, 300])
def test_a_query_sees_its_window_from_the_first_row_on_and_always_itself(isa: str, window: int, dtype: torch.dtype):
    positions = torch.tensor([[3, 4], [255, 256], [600, 601], [699, 2]])
    first = torch.tensor([0, 250, 601, 40])
    q, keys, values = within_windows(positions, first, window, 700, dtype)
    # One query at a time: what one may see, the other may not.
    for t in range(2):
        arguments = (positions[:, t : t + 1].contiguous(), 0.3, None, 0, first, window)
        result = ops.decode_attention(q[:, t : t + 1], keys, values, *arguments)
        clean = [c.nan_to_num() for c in (keys, values)]
        plain = D.decode_attention(q[:, t : t + 1].to(dtype), *clean, *arguments)
        assert_no_worse_than_torch(result, plain, D.decode_attention(*double(q[:, t : t + 1], *clean), *arguments))
    together = ops.decode_attention(q, *clean, positions, 0.3, None, 0, first, window)
    exact = D.decode_attention(*double(q, *clean), positions, 0.3, None, 0, first, window)
    assert_no_worse_than_torch(
        together, D.decode_attention(q.to(dtype), *clean, positions, 0.3, None, 0, first, window), exact
    )


@pytest.mark.parametrize("tokens", [3, 40])
def test_slots_say_where_keys_and_values_go_and_positions_how_they_are_turned(isa: str, tokens: int):
    case = (2, tokens, 3, 1, 22, 50, 90)
    args = qkv_arguments(case, torch.float32, True)
    slots = torch.stack([torch.randperm(90)[:tokens] for _ in range(2)])
    keys, values = poisoned(case, torch.float32), poisoned(case, torch.float32)
    plain_keys, plain_values = poisoned(case, torch.float32), poisoned(case, torch.float32)
    true_keys, true_values = poisoned(case, torch.float64), poisoned(case, torch.float64)
    q = ops.norm_qkv_rope(*args, keys, values, slots=slots)
    plain = D.norm_qkv_rope(*args, plain_keys, plain_values, slots=slots)
    true = D.norm_qkv_rope(*double(*args), true_keys, true_values, slots=slots)
    assert_no_worse_than_torch(q, plain, true)
    for ours, theirs, exact in ((keys, plain_keys, true_keys), (values, plain_values, true_values)):
        written = ~torch.isnan(exact)
        assert written.any()
        assert torch.equal(~torch.isnan(ours), written)
        assert_no_worse_than_torch(ours[written], theirs[written], exact[written])


def test_slots_first_and_window_out_of_range_are_refused():
    case = CASES[1]
    keys, values = (poisoned(case, torch.float32).nan_to_num() for _ in range(2))
    args = qkv_arguments(case, torch.float32, False)
    slots = args[-1].clone()
    slots[1, 2] = 40
    for run in (ops.norm_qkv_rope, D.norm_qkv_rope):
        with pytest.raises(RuntimeError, match=r"slots: 40 is outside \[0, 40\)"):
            run(*args, keys, values, slots=slots)
    q = random(3, 5, 4, 10)
    for run in (ops.decode_attention, D.decode_attention):
        with pytest.raises(RuntimeError, match=r"first: -1 is outside \[0, 40\)"):
            run(q, keys, values, args[-1], 0.3, first=torch.tensor([0, -1, 2]))
        with pytest.raises(RuntimeError, match=r"first: .*\[batch\] is expected"):
            run(q, keys, values, args[-1], 0.3, first=torch.tensor([0, 1]))
        with pytest.raises(RuntimeError, match="window: -2 given"):
            run(q, keys, values, args[-1], 0.3, window=-2)


def test_attention_of_one_sequence_has_the_same_bits_in_any_batch_and_with_any_threads(isa: str):
    q, keys, values = random(5, 1, 6, 16), random(5, 2, 900, 16), random(5, 2, 900, 16)
    positions = torch.tensor([[0], [255], [256], [700], [899]])
    whole = ops.decode_attention(q, keys, values, positions, 0.25)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for b in range(5):
            alone = ops.decode_attention(q[b : b + 1], keys[b : b + 1], values[b : b + 1], positions[b : b + 1], 0.25)
            assert torch.equal(alone, whole[b : b + 1])
    finally:
        torch.set_num_threads(threads)


def test_scores_of_any_size_do_not_overflow(isa: str):
    q, keys = torch.full((1, 1, 2, 8), 1e4), torch.full((1, 1, 300, 8), 1e4)
    keys[0, 0, 7] *= 2
    values = random(1, 1, 300, 8)
    result = ops.decode_attention(q, keys, values, torch.tensor([[299]]), 1.0)
    torch.testing.assert_close(result[0, 0, 1], values[0, 0, 7])


def test_a_skipped_unit_leaves_the_cache_alone(isa: str):
    case = CASES[1]
    args = qkv_arguments(case, torch.float32, False)
    keys, values = poisoned(case, torch.float32), poisoned(case, torch.float32)
    skip = torch.tensor([True])
    assert not ops.norm_qkv_rope(*args, keys, values, skip, 0).any()
    assert torch.isnan(keys).all()
    assert torch.isnan(values).all()
    assert not ops.decode_attention(random(3, 5, 4, 10), keys, values, args[-1], 1.0, skip, 0).any()


def test_caches_may_be_views_and_larger_than_the_batch():
    case = (2, 1, 4, 2, 10, 33, 12)
    args = qkv_arguments(case, torch.float32, False)
    store = torch.zeros(2, 5, 12, 2, 10)  # [.., batch, length, heads, dim]: another memory order
    keys, values = store[0].transpose(1, 2), store[1].transpose(1, 2)
    dense = [torch.zeros(5, 2, 12, 10) for _ in range(2)]
    q = ops.norm_qkv_rope(*args, keys, values)
    assert torch.equal(q, ops.norm_qkv_rope(*args, *dense))
    assert torch.equal(keys, dense[0])
    assert torch.equal(
        ops.decode_attention(q, keys, values, args[-1], 1.0), ops.decode_attention(q, *dense, args[-1], 1.0)
    )


@pytest.mark.parametrize("position", [-1, 40])
def test_a_position_outside_the_cache_is_refused_before_anything_is_written(position: int):
    case = CASES[1]
    args = qkv_arguments(case, torch.float32, False)
    args[-1] = args[-1].clone()
    args[-1][2, 4] = position
    keys, values = poisoned(case, torch.float32), poisoned(case, torch.float32)
    for function in (ops.norm_qkv_rope, D.norm_qkv_rope):
        with pytest.raises(RuntimeError, match=f"positions: {position} is outside"):
            function(*args, keys, values)
    assert torch.isnan(keys).all()
    for function in (ops.decode_attention, D.decode_attention):
        with pytest.raises(RuntimeError, match=f"positions: {position} is outside"):
            function(random(3, 5, 4, 10), keys, values, args[-1], 1.0)


@needs_library
@pytest.mark.parametrize(
    ("place", "value", "message"),
    WRONG_QKV,
)
def test_a_wrong_argument_is_named(place: int, value: torch.Tensor, message: str):
    case = CASES[1]
    args = [*qkv_arguments(case, torch.float32, False), poisoned(case, torch.float32), poisoned(case, torch.float32)]
    args[place] = value
    with pytest.raises(RuntimeError, match=message):
        ops.norm_qkv_rope(*args)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_a_number_is_never_hidden(isa: str, bad: float):
    q, keys, values = random(1, 1, 2, 8), random(1, 1, 300, 8), random(1, 1, 300, 8)
    keys[0, 0, 3, :2] = torch.tensor([bad, -bad])  # inf - inf is NaN too
    q[..., :2] = 1.0
    positions = torch.tensor([[299]])
    assert torch.isnan(D.decode_attention(q, keys, values, positions, 1.0)).all()
    assert torch.isnan(ops.decode_attention(q, keys, values, positions, 1.0)).all()


def test_scores_of_minus_infinity_weigh_nothing(isa: str):
    q, keys, values = torch.ones(1, 1, 1, 8), random(1, 1, 600, 8), random(1, 1, 600, 8)
    keys[0, 0, :300] = float("-inf")  # more than a whole stretch
    positions = torch.tensor([[599]])
    plain = D.decode_attention(q, keys, values, positions, 1.0)
    exact = D.decode_attention(*double(q, keys, values), positions, 1.0)
    assert_no_worse_than_torch(ops.decode_attention(q, keys, values, positions, 1.0), plain, exact)


@needs_library
def test_no_kv_heads_are_refused():
    args = qkv_arguments((1, 1, 2, 1, 8, 33, 4), torch.float32, False)
    args[4], args[5] = torch.empty(0, 33), torch.empty(0, 33)
    empty = torch.empty(1, 0, 4, 8)
    with pytest.raises(RuntimeError, match="k_weight"):
        ops.norm_qkv_rope(*args, empty, empty.clone())


def test_a_long_stretch_of_queries_is_exact_too():
    q, keys, values = random(1, 1100, 4, 32), random(1, 2, 1200, 32), random(1, 2, 1200, 32)
    positions = torch.arange(50, 1150).unsqueeze(0)
    plain = D.decode_attention(q, keys, values, positions, 0.2)
    exact = D.decode_attention(*double(q, keys, values), positions, 0.2)
    assert_no_worse_than_torch(ops.decode_attention(q, keys, values, positions, 0.2), plain, exact)
