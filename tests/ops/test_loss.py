from __future__ import annotations

import pytest
import torch

from pyprune import ops
from tests import seeds
from tests.judge import assert_no_worse_than_torch
from tests.ops.inputs import WEIGHTS, double, low, norm, random, weight

D = ops.reference


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize(("rows", "vocab", "hidden"), [(1, 1, 1), (3, 37, 61), (130, 2500, 33), (1100, 1030, 17)])
def test_loss_equals_log_softmax_across_tiles_of_rows_and_vocabulary(
    isa: str, rows: int, vocab: int, hidden: int, dtype: torch.dtype
):
    torch.manual_seed(seeds.seed())
    x, w, target = random(rows, hidden) * 3, weight(vocab, hidden, dtype), torch.randint(0, vocab, (rows,))
    for args in (
        [x, w, target],
        [x, w, target, norm(hidden, dtype), 1e-5, random(vocab, dtype=dtype)],
    ):
        result = ops.linear_cross_entropy(*args)
        assert result.dtype == torch.float32
        assert_no_worse_than_torch(
            result, D.linear_cross_entropy(*low(dtype, *args)), D.linear_cross_entropy(*double(*args)), tiny=2e-6
        )


def test_ignored_rows_cost_nothing_and_do_not_disturb_the_others(isa: str):
    torch.manual_seed(seeds.seed())
    x, w, target = random(2, 5, 16), weight(50, 16, torch.float32), torch.randint(0, 50, (2, 5))
    masked = target.clone()
    masked[1, 2:] = -100
    whole, part = ops.linear_cross_entropy(x, w, target), ops.linear_cross_entropy(x, w, masked)
    assert not part[1, 2:].any()
    assert torch.equal(part[0], whole[0])


def test_logits_of_any_size_do_not_overflow(isa: str):
    x, w = torch.tensor([[1.0], [-1.0]]), torch.tensor([[3e4], [-3e4], [0.0]])
    losses = ops.linear_cross_entropy(x, w, torch.tensor([0, 0]))
    torch.testing.assert_close(losses, torch.tensor([0.0, 6e4]))


@pytest.mark.parametrize("bad", [-1, 50, -101])
def test_a_target_outside_the_vocabulary_is_refused(bad: int):
    x, w = random(2, 16), weight(50, 16, torch.float32)
    for function in (ops.linear_cross_entropy, D.linear_cross_entropy):
        with pytest.raises(RuntimeError, match=r"targets: .*-?\d+.* is outside \[0, 50\)"):
            function(x, w, torch.tensor([0, bad]))


def test_not_a_number_is_never_hidden_wherever_it_stands(isa: str):
    x, w = random(3, 16), weight(2500, 16, torch.float32)
    for row in (0, 1023, 1024, 2499):
        bad = w.clone()
        bad[row, 0] = float("nan")
        assert torch.isnan(ops.linear_cross_entropy(x, bad, torch.tensor([5, 6, 7]))).all()


@pytest.mark.parametrize(
    ("vocab", "begin", "end"), [(2500, 0, 1100), (2500, 1000, 2200), (300, 128, 256), (300, 0, 256), (300, 0, 300)]
)
@pytest.mark.parametrize("rows", [3, 70])
def test_logits_of_minus_infinity_weigh_nothing(isa: str, rows: int, vocab: int, begin: int, end: int):
    # A row of nothing else has no loss (NaN), a target that cannot be an infinite one: as in PyTorch.
    torch.manual_seed(seeds.seed())
    x, w, bias = random(rows, 16), weight(vocab, 16, torch.float32), torch.zeros(vocab)
    bias[begin:end] = float("-inf")
    target = torch.randint(0, vocab, (rows,))
    target[0], target[1] = -100, begin
    plain = D.linear_cross_entropy(x, w, target, None, 0.0, bias)
    exact = D.linear_cross_entropy(*double(x, w, target), None, 0.0, bias.double())
    assert exact[1].isinf() if end - begin < vocab else exact[1:].isnan().all()
    result, shown = ops.linear_cross_entropy(x, w, target, None, 0.0, bias), exact.isfinite()
    torch.testing.assert_close(result[~shown].double(), exact[~shown], rtol=0, atol=0, equal_nan=True)
    assert_no_worse_than_torch(result[shown], plain[shown], exact[shown], tiny=2e-6)


@pytest.mark.parametrize("scale", [1.0, 0.3, -0.7])
@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (3, 37), (5, 64), (2, 2501)])
def test_the_gradient_takes_the_place_of_logits(isa: str, rows: int, vocab: int, dtype: torch.dtype, scale: float):
    torch.manual_seed(seeds.seed())
    logits, target = random(rows, vocab, dtype=dtype, scale=4), torch.randint(0, vocab, (rows,))
    results = []
    for function, values in ((ops, logits.clone()), (D, logits.clone()), (D, logits.double())):
        results.append((function.cross_entropy_gradient(values, target, scale), values))
    (losses, slopes), *others = results
    assert (losses.dtype, slopes.dtype) == (torch.float32, dtype)
    assert_no_worse_than_torch(losses, *(loss for loss, _ in others), tiny=2e-6)
    assert_no_worse_than_torch(slopes, *(slope for _, slope in others), dtype=dtype, tiny=2e-6)


def test_gradients_of_logits_at_the_edges(isa: str):
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([[3e4, -3e4, 0.0], [-inf, 1.0, 2.0], [nan, 0.0, 1.0], [-inf, -inf, -inf]]).repeat(1, 40)
    target = torch.tensor([1, 0, 2, 1])
    plain, ours = logits.clone(), logits.clone()
    expected, losses = D.cross_entropy_gradient(plain, target), ops.cross_entropy_gradient(ours, target)
    torch.testing.assert_close(losses, expected, equal_nan=True)
    torch.testing.assert_close(ours, plain, equal_nan=True)


@pytest.mark.parametrize("by", [ops, D], ids=["kernel", "reference"])
def test_a_target_outside_the_logits_is_refused(by):
    for bad in (-1, 5, -100):
        with pytest.raises(RuntimeError, match=rf"targets: {bad} is outside \[0, 5\)"):
            by.cross_entropy_gradient(random(2, 5), torch.tensor([0, bad]))
