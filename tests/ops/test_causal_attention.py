"""Causal attention for training: every instruction set against float64, no worse than torch's, forth and back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pyprune import ops
from tests import seeds
from tests.judge import assert_no_worse_than_torch
from tests.library import needs_library
from tests.ops.inputs import WEIGHTS, random

D = ops.reference
CASES = [(1, 1, 1, 1, 1), (2, 4, 2, 7, 6), (1, 6, 2, 64, 16), (2, 3, 3, 65, 33), (1, 3, 1, 150, 64), (1, 2, 1, 131, 80)]
"""batch, heads, KV heads, tokens, head size."""


def operands(case: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """q, k, v and the gradient of the result, as a model has them: tokens before heads in memory."""
    torch.manual_seed(seeds.seed())
    batch, heads, kv_heads, tokens, size = case
    return [
        random(batch, tokens, count, size, dtype=dtype).transpose(1, 2) for count in (heads, kv_heads, kv_heads, heads)
    ]


def run(by, q, k, v, slope, scale):
    wide = torch.promote_types(q.dtype, torch.float32)
    sums = torch.full(q.shape[:-1], torch.nan, dtype=wide)
    out = by.causal_attention(q, k, v, scale, sums)
    slopes = [torch.full_like(values, torch.nan) for values in (q, k, v)]
    by.causal_attention_backward(slope, q, k, v, out, sums, scale, *slopes)
    return out, *slopes, sums


def by_torch(q, k, v, slope, scale):
    leaves = [values.detach().requires_grad_() for values in (q, k, v)]
    out = F.scaled_dot_product_attention(*leaves, is_causal=True, scale=scale, enable_gqa=True)
    return out.detach(), *torch.autograd.grad(out, leaves, slope)


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_no_worse_than_torch(isa: str, case: tuple[int, ...], dtype: torch.dtype):
    operand, scale = operands(case, dtype), 0.7 * case[-1] ** -0.5
    exact = [values.double() for values in operand]
    truth = by_torch(*exact, scale)
    *results, sums = run(ops, *operand, scale)
    assert all(result.dtype == dtype for result in results)
    for result, plain, expected in zip(results, by_torch(*operand, scale), truth, strict=True):
        assert_no_worse_than_torch(result, plain, expected, dtype=dtype, tiny=2e-6)
    *_, expected = run(D, *exact, scale)
    assert (sums - expected).abs().max() <= 1e-5 * (1 + expected.abs().max())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference_is_torch_s_in_float64(case: tuple[int, ...]):
    operand = operands(case, torch.float64)
    *results, _ = run(D, *operand, 0.3)
    for result, expected in zip(results, by_torch(*operand, 0.3), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-12)


def test_large_scores_do_not_overflow(isa: str):
    q, k, v, slope = operands((1, 2, 1, 70, 16), torch.float32)
    results, exact = run(ops, q * 40, k, v, slope, 1.0), by_torch(*(x.double() for x in (q * 40, k, v, slope)), 1.0)
    plain = by_torch(q * 40, k, v, slope, 1.0)
    for result, theirs, expected in zip(results[:-1], plain, exact, strict=True):
        assert_no_worse_than_torch(result, theirs, expected, tiny=2e-6)


def test_no_query_sees_a_key_behind_it(isa: str):
    q, k, v, slope = operands((2, 4, 2, 90, 16), torch.float32)
    slope[:, :, 71:] = 0
    before = run(ops, q, k, v, slope, 0.25)
    for values in (q, k, v):
        values[:, :, 71:] = random(*values[:, :, 71:].shape, scale=9)
    after = run(ops, q, k, v, slope, 0.25)
    for one, other in zip(before, after, strict=True):  # what would flow back from behind is nothing, too
        assert torch.equal(one[:, :, :71], other[:, :, :71])
    assert not torch.equal(before[0][:, :, 71:], after[0][:, :, 71:])


def test_results_do_not_depend_on_the_number_of_threads(isa: str):
    operand, threads, results = operands((3, 4, 2, 150, 32), torch.bfloat16), torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        results.append(run(ops, *operand, 0.2))
    torch.set_num_threads(threads)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_wrong_arguments_are_named():
    q, k, v, _ = operands((2, 4, 2, 7, 6), torch.float32)
    sums = torch.empty(q.shape[:-1])
    for arguments, words in (
        ((q, k[:, :, :5], v, 1.0, sums), r"k: \[2, 2, 7, 6\]"),
        ((q[:, :3], k, v, 1.0, sums), r"k: a divisor of the 3 heads"),
    ):
        with pytest.raises(RuntimeError, match=words):
            ops.causal_attention(*arguments)


@needs_library
def test_what_the_kernel_alone_expects_is_named():
    q, k, v, slope = operands((2, 4, 2, 7, 6), torch.float32)
    sums = torch.empty(q.shape[:-1])
    for arguments, words in (
        ((q, k, v.bfloat16(), 1.0, sums), r"v: .* of the dtype of q"),
        ((q, k, v, 1.0, sums[:1]), r"log_sums: .*\[2, 4, 7\]"),
        ((q.transpose(2, 3), k, v, 1.0, sums), r"q: .* with contiguous rows"),
    ):
        with pytest.raises(RuntimeError, match=words):
            ops.causal_attention(*arguments)
    out = ops.causal_attention(q, k, v, 1.0, sums)
    slopes = [torch.empty_like(values) for values in (q, k, v)]
    with pytest.raises(RuntimeError, match=r"slope: \[2, 4, 7, 6\]"):
        ops.causal_attention_backward(slope[:1], q, k, v, out, sums, 1.0, *slopes)
    with pytest.raises(RuntimeError, match=r"dk: \[2, 2, 7, 6\]"):
        ops.causal_attention_backward(slope, q, k, v, out, sums, 1.0, slopes[0], slopes[0], slopes[2])
