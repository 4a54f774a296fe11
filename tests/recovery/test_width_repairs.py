"""Repairs of removed heads and neurons against independent float64 computations."""

from __future__ import annotations

import pytest
import torch
from definitions import (
    GONE,
    RIDGE,
    STAY,
    Run,
    assert_fitted,
    narrowing,
    streams_at_ffn,
    weights_of,
)

import pyprune
from pyprune import Pruning
from pyprune.recovery.streams import output_projection
from pyprune.runtime.sequence import ffn_activation
from tests.judge import TINY_OF_MODELS, assert_no_worse_than_torch, assert_same_but_for_rounding


def test_flap_bias_is_flaps_formula(original, ids):
    repaired = pyprune.repair(original, narrowing(), ids, "flap-bias")
    _, activation, _, _ = streams_at_ffn(original, ids)
    down = original.blocks[1].ffn.down
    old = 0 if down.bias is None else down.bias
    plain, exact = (
        old + down.weight.to(dtype)[:, GONE] @ activation.to(dtype).mean((0, 1))[GONE]
        for dtype in (torch.float32, torch.float64)
    )
    assert_no_worse_than_torch(repaired.blocks[1].ffn.down.bias, plain, exact)


def test_stat_folds_what_went_into_what_stays(original, ids):
    """Without a ridge it is W_K + W_R T, T the least squares from the inputs that stay to those that went."""
    repaired = pyprune.repair(original, narrowing(), ids, "stat", ridge=0, weighting="equal", exact=True)
    run = Run(original, ids)
    for block in original.blocks[:3]:
        run.block(block)
    context, weight = run.context(original.blocks[3].mha).flatten(0, 1), original.blocks[3].mha.o.weight

    def folded(context, weight):
        fold = torch.linalg.lstsq(context[:, :18], context[:, 18:], driver="gelsd").solution
        return weight[:, :18] + weight[:, 18:] @ fold.T

    exact = folded(context.double(), weight.double())
    assert_no_worse_than_torch(repaired.blocks[3].mha.o.weight, folded(context, weight), exact, TINY_OF_MODELS)


@pytest.mark.parametrize("method", ["refit", "refit-all", "refit-all-o"])
def test_a_narrowed_projection_is_refitted_to_the_originals_stream(original, ids, method):
    repaired = pyprune.repair(original, Pruning(neurons={1: GONE}), ids, method, ridge=RIDGE)
    _, activation, before, target = streams_at_ffn(original, ids)
    down = original.blocks[1].ffn.down
    design = activation[..., STAY], target - before, weights_of(target), down.weight[:, STAY], down.bias
    assert_fitted(repaired.blocks[1].ffn.down, *design)


def test_mean_update_adds_what_lost_neurons_brought(original, ids):
    repaired = pyprune.repair(original, Pruning(neurons={1: GONE}), ids, "mean-update")
    _, activation, _, _ = streams_at_ffn(original, ids)
    down = original.blocks[1].ffn.down
    expected = activation.double()[..., GONE].mean((0, 1)) @ down.weight.double()[:, GONE].T
    assert_same_but_for_rounding(repaired.blocks[1].ffn.down.bias, expected + (0 if down.bias is None else down.bias))


def test_stat_folds_lost_neurons(original, ids):
    pruning = Pruning(neurons={1: GONE})
    repaired = pyprune.repair(original, pruning, ids, "stat", ridge=0, weighting="equal", exact=True)
    _, activation, _, _ = streams_at_ffn(original, ids)
    rows, weight = activation.flatten(0, 1), original.blocks[1].ffn.down.weight

    def folded(rows, weight):
        fold = torch.linalg.lstsq(rows[:, STAY], rows[:, GONE], driver="gelsd").solution
        return weight[:, STAY] + weight[:, GONE] @ fold.T

    exact = folded(rows.double(), weight.double())
    assert_no_worse_than_torch(repaired.blocks[1].ffn.down.weight, folded(rows, weight), exact, TINY_OF_MODELS)


@pytest.fixture
def compensated(llama, ids):
    """A narrowed model whose biases hold what FLAP's compensation adds, of these windows."""
    plain = pyprune.repair(llama, narrowing(), ids, "flap-bias")
    assert plain.blocks[1].ffn.down.bias is not None
    return plain


def test_flap_bias_does_not_add_again_what_the_pruning_added(llama, ids, compensated):
    again = pyprune.repair(llama, compensated, ids, "flap-bias")
    for kind, block in (("ffn", 1), ("mha", 3)):
        before, after = (output_projection(getattr(m.blocks[block], kind)).bias for m in (compensated, again))
        assert_same_but_for_rounding(after, before.double())
        assert float(before.norm()) > 0


def test_stat_leaves_to_the_weights_what_the_compensation_does_not_bring(llama, ids, compensated):
    repaired = pyprune.repair(llama, compensated, ids, "stat", ridge=0, weighting="equal", exact=True)
    run = Run(llama, ids)
    for block in llama.blocks[:3]:
        run.block(block)
    context, weight = run.context(llama.blocks[3].mha).flatten(0, 1), llama.blocks[3].mha.o.weight
    bias = compensated.blocks[3].mha.o.bias

    def fitted(dtype):
        inputs, target = context.to(dtype), context.to(dtype) @ weight.to(dtype).T - bias.to(dtype)
        return torch.linalg.lstsq(inputs[:, :18], target, driver="gelsd").solution.T

    assert_no_worse_than_torch(
        repaired.blocks[3].mha.o.weight, fitted(torch.float32), fitted(torch.float64), TINY_OF_MODELS
    )
    assert torch.equal(repaired.blocks[3].mha.o.bias, bias)
    without = pyprune.repair(llama, narrowing(), ids, "stat", ridge=0, weighting="equal", exact=True)
    assert not torch.allclose(without.blocks[3].mha.o.weight, repaired.blocks[3].mha.o.weight)


def test_padding_changes_nothing(llama, ids):
    """Zero neurons up to the original's own width: as if they were not there."""
    removed = {1: (0, 4, 7)}
    for method in ("refit", "stat"):
        plain = pyprune.repair(llama, Pruning(neurons=removed), ids, method, ridge=1e-3)
        padded = pyprune.repair(llama, Pruning(neurons=removed, pad_to=23), ids, method, ridge=1e-3)
        assert padded.blocks[1].ffn.width == 23
        weight = padded.blocks[1].ffn.down.weight
        assert not bool(weight[:, 20:].any())
        difference = (weight[:, :20] - plain.blocks[1].ffn.down.weight).abs().max()
        # The ridge is relative to the mean over inputs, which zeros lower.
        assert float(difference / weight.abs().max()) < 0.05


def test_an_original_that_is_narrow_itself(llama, ids):
    """What stays is looked up among what the original has."""
    narrow = pyprune.apply(llama, Pruning(neurons={1: (0, 2)}))
    pruned = pyprune.apply(narrow, Pruning(neurons={1: (0, 2, 9)}))
    stat = pyprune.repair(narrow, pruned, ids, "stat", ridge=1e6)  # a ridge so large leaves the weights as they are
    assert torch.allclose(stat.blocks[1].ffn.down.weight, pruned.blocks[1].ffn.down.weight, atol=1e-5)
    with_bias = pyprune.repair(narrow, pruned, ids, "flap-bias")
    run = Run(narrow, ids)
    run.block(narrow.blocks[0])
    middle = run.block(type(narrow.blocks[1])(1, narrow.blocks[1].mha, None))
    mean = ffn_activation(narrow.blocks[1].ffn, middle, narrow.eps).double().mean((0, 1))[7]  # 9 less 0 and 2
    expected = narrow.blocks[1].ffn.down.weight.double()[:, 7] * mean
    assert_same_but_for_rounding(with_bias.blocks[1].ffn.down.bias, expected)
