"""The Triton loss kernels against log_softmax in float64."""

from __future__ import annotations

import pytest
import torch

from pyprune.ops.reference import REFERENCE
from tests.judge import assert_no_worse_than_torch
from tests.ops.inputs import double, norm, random, weight
from tests.triton.on_device import check, run, seeded  # noqa: F401


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
