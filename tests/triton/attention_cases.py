"""The Triton attention kernels against their reference implementation in float64."""

from __future__ import annotations

import pytest
import torch

from pyprune.ops.reference import REFERENCE
from tests.judge import assert_no_worse_than_torch
from tests.ops.attention_inputs import up_to_its_position, within_windows
from tests.ops.inputs import double, random
from tests.triton.on_device import DTYPES, NAN, SHAPES, check, run, seeded  # noqa: F401

from pyprune.triton_kernels import attention  # isort: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*SHAPES[:5], (2, 1, 2, 2, 40, 0, 90)], ids=str)
def test_attention_is_exact_and_sees_nothing_past_its_position(case: tuple, dtype: torch.dtype):
    q, keys, values, positions = up_to_its_position(case, dtype)
    head_dim = q.shape[-1]
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
    positions = torch.tensor([[3, 4], [31, 32], [64, 65], [109, 2]])
    first = torch.tensor([0, 30, 65, 20])
    q, keys, values = within_windows(positions, first, window, 110, dtype)  # in the interpreter a KV split is 32 rows
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
