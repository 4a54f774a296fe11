"""The Triton kernels that turn queries and keys and write the KV cache, against their reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyprune.ops.reference import REFERENCE
from tests.judge import assert_no_worse_than_torch
from tests.ops.attention_inputs import WRONG_QKV, poisoned, qkv_arguments
from tests.ops.inputs import double, low, random
from tests.triton.on_device import DTYPES, NAN, SHAPES, run, seeded  # noqa: F401


@pytest.mark.parametrize(
    ("dtype", "case"), [(d, c) for d in DTYPES for c in SHAPES if d == torch.float32 or c in (SHAPES[0], SHAPES[3])],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("extras", [False, True], ids=["plain", "bias+qknorm"])
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


@pytest.mark.parametrize("case", [SHAPES[2], SHAPES[3]], ids=str)
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
    case = SHAPES[2]
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
    case = SHAPES[2]
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


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [*WRONG_QKV, (18, torch.zeros(3, 4, dtype=torch.int64), "slots")],
)
def test_a_wrong_argument_of_the_projections_for_attention_is_named(place: int, value: Tensor, message: str):
    case = SHAPES[2]
    caches = [poisoned(case, torch.float32) for _ in range(2)]
    args = [*qkv_arguments(case, torch.float32, False), *caches, None, 0, torch.zeros(3, 5, dtype=torch.int64)]
    args[place] = value
    with pytest.raises(RuntimeError, match=message):
        run("norm_qkv_rope", *args)
