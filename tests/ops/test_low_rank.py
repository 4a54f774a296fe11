"""LoRA's products: every instruction set against float64, no worse than plain PyTorch, and their masks."""

from __future__ import annotations

import pytest
import torch

from pyprune import ops
from pyprune.ops.dropout import kept, philox
from tests import seeds
from tests.judge import assert_no_worse_than_torch
from tests.library import LEFT_OUT
from tests.ops.inputs import WEIGHTS, double, low, random

D = ops.reference
SIZES = [(1, 1, 1), (3, 61, 5), (65, 129, 8), (70, 200, 9), (130, 577, 16)]  # rows, columns, rank
DROPOUT = [0.0, 0.3]


def of(rows: int, columns: int, rank: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seeds.seed())
    return random(rows, columns, dtype=dtype), random(rank, columns, scale=columns**-0.5), random(rows, rank)


@pytest.mark.parametrize("dropout", DROPOUT)
@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_three_products(isa: str, size: tuple[int, int, int], dtype: torch.dtype, dropout: float):
    x, a, left = of(*size, dtype)
    seed = seeds.seed(8)
    arguments = {"low_rank_project": [x, a, seed, dropout], "low_rank_gradient": [left, x, seed, dropout]}
    for name, args in arguments.items():
        result = getattr(ops, name)(*args)
        assert result.dtype == torch.float32
        reference = getattr(D, name)
        assert_no_worse_than_torch(result, reference(*low(dtype, *args)), reference(*double(*args)), tiny=2e-6)
    sums = []
    for function, args in (
        (ops.low_rank_add, [x, left, a]),
        (D.low_rank_add, low(dtype, x, left, a)),
        (D.low_rank_add, double(x, left, a)),
    ):
        y = args[0].clone()
        function(y, *args[1:], seed, dropout)
        sums.append(y)
    assert sums[0].dtype == dtype
    assert_no_worse_than_torch(*sums, tiny=2e-6)


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 577])
def test_the_mask_is_the_formulas_to_the_bit(isa: str, columns: int):
    rows, seed, p = 67, (seeds.seed(9) & 0xFFFF) << 33 | 5, 0.37
    shown = torch.zeros(rows, columns)
    ops.low_rank_add(shown, torch.ones(rows, 1), torch.ones(1, columns), seed, p)
    assert torch.equal(shown != 0, kept(seed, rows, columns, p))
    x = random(rows, columns)
    masked = x.where(kept(seed, rows, columns, p), 0)
    a = random(3, columns)
    assert torch.equal(ops.low_rank_project(x, a, seed, p), ops.low_rank_project(masked, a))
    assert torch.equal(ops.low_rank_gradient(shown[:, :1], x, seed, p), ops.low_rank_gradient(shown[:, :1], masked))


def test_the_generator_is_philox_4x32_10():
    """Known answers of its authors (Random123)."""
    answers = {
        (0x00000000, 0x0000000000000000): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF): (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    }
    for (word, key), expected in answers.items():
        counter = [torch.tensor([word])] * 4
        assert tuple(int(part) for part in philox(*counter, key)) == expected


@pytest.mark.parametrize("p", [0.05, 0.5, 0.999])
def test_masks_have_their_probability(p: float):
    rows, columns = 401, 499
    mask = kept(seeds.seed(3), rows, columns, p)
    for share in (mask.double().mean(), mask[:, ::2].double().mean(), mask[::2].double().mean()):
        assert abs(1 - float(share) - p) < 5 * (p * (1 - p) / (rows * columns // 2 - rows)) ** 0.5 + 1 / 65536
    other = kept(seeds.seed(3) + 1, rows, columns, p)
    together = (~mask & ~other).double().mean()
    assert abs(float(together) - p * p) < 5 * p / (rows * columns) ** 0.5 + 1 / 32768


@pytest.mark.parametrize("dropout", DROPOUT)
def test_results_do_not_depend_on_the_number_of_threads(isa: str, dropout: float):
    x, a, left = of(515, 300, 8, torch.bfloat16)
    threads, results = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        y = x.clone()
        ops.low_rank_add(y, left, a, 7, dropout)
        results.append((y, ops.low_rank_project(x, a, 7, dropout), ops.low_rank_gradient(left, x, 7, dropout)))
    torch.set_num_threads(threads)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_a_dropped_value_is_never_read_as_a_number(isa: str):
    x, a, left = of(70, 200, 8, torch.float32)
    mask = kept(1, 70, 200, 0.5)
    bad = x.where(mask, float("nan"))
    assert torch.equal(ops.low_rank_project(bad, a, 1, 0.5), ops.low_rank_project(x, a, 1, 0.5))
    assert torch.equal(ops.low_rank_gradient(left, bad, 1, 0.5), ops.low_rank_gradient(left, x, 1, 0.5))
    assert torch.isnan(ops.low_rank_project(bad, a)).any()


def test_factors_may_lie_transposed_and_rows_in_more_dimensions():
    x, a, left = of(24, 61, 5, torch.float32)
    for result, name, args, bits in (
        (ops.low_rank_project(x, a.T.contiguous().T), "low_rank_project", (x, a), not LEFT_OUT),
        (ops.low_rank_project(x.T.contiguous().T, a), "low_rank_project", (x, a), not LEFT_OUT),
        (ops.low_rank_project(x.view(4, 6, 61), a).view(24, 5), "low_rank_project", (x, a), True),
        (ops.low_rank_gradient(left.view(2, 12, 5), x.view(4, 6, 61)), "low_rank_gradient", (left, x), True),
    ):
        plain, exact = getattr(D, name)(*args), getattr(D, name)(*double(*args))
        assert_no_worse_than_torch(result, plain, exact, tiny=2e-6)
        # Only plain PyTorch, which runs without the library, sums otherwise where an operand lies otherwise.
        assert not bits or torch.equal(result, getattr(ops, name)(*args))


def test_no_rows_are_nothing():
    a = random(5, 61)
    assert ops.low_rank_project(torch.empty(0, 61), a).shape == (0, 5)
    assert torch.equal(ops.low_rank_gradient(torch.empty(0, 5), torch.empty(0, 61)), torch.zeros(5, 61))
    ops.low_rank_add(torch.empty(0, 61), torch.empty(0, 5), a)


@pytest.mark.parametrize("by", [ops, D], ids=["kernel", "reference"])
def test_wrong_arguments_are_named(by):
    x, a = random(4, 6), random(2, 6)
    with pytest.raises(RuntimeError, match=r"a: a .*matrix"):
        by.low_rank_project(x, random(2, 5))
    with pytest.raises(RuntimeError, match=r"low: .*row"):
        by.low_rank_add(x, random(3, 2), a)
    with pytest.raises(RuntimeError, match=r"low: 2 values a row are expected"):
        by.low_rank_add(x, random(4, 3), a)
    with pytest.raises(RuntimeError, match=r"low: .*row"):
        by.low_rank_gradient(random(3, 2), x)
    for p in (1.0, -0.1):
        with pytest.raises(RuntimeError, match=r"dropout: a probability from 0 to below 1 is expected"):
            by.low_rank_project(x, a, 0, p)
