"""Predicted perplexities: slopes of the loss in a gate on each unit, by autograd through transformers' model."""

from __future__ import annotations

import math

import pytest
import torch
from plain import FAMILIES, SIZES, ids, model_of, padding, token_losses

from pyprune import Pruning, apply, load, score
from pyprune.scoring.agreement import rank_correlation
from pyprune.scoring.calibration import calibration

NEAR = 3e-6


def gated(decoder, input_ids, mask=None):
    """The mean loss, and (kind, original index) -> d(summed loss)/d(gate) of a gate of 1 on the update of every token,
    `[S, T]`: of the unit's update of the residual stream, by hooks in transformers' model."""
    model, gates = model_of(decoder), {}

    def gate(kind, index):
        gates[kind, index] = torch.ones(*input_ids.shape, 1, dtype=torch.float64, requires_grad=True)
        return gates[kind, index]

    for layer, block in zip(model.model.layers, decoder.blocks, strict=True):
        one = gate("block", block.index)
        layer.register_forward_hook(lambda _, given, output, one=one: given[0] + one * (output - given[0]))
        if block.mha is not None:
            one = gate("mha", block.index)
            layer.self_attn.register_forward_hook(lambda _, given, output, one=one: (one * output[0], *output[1:]))
        if block.ffn is not None:
            one = gate("ffn", block.index)
            layer.mlp.register_forward_hook(lambda _, given, output, one=one: one * output)
    losses = torch.cat(token_losses(model, input_ids, mask))
    slopes = torch.autograd.grad(losses.sum(), list(gates.values()))
    return losses.mean().item(), {one: slope[..., 0] for one, slope in zip(gates, slopes, strict=True)}, len(losses)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_prediction_is_the_slope_in_a_gate_on_the_unit(family: str, masked: bool):
    decoder, input_ids = load(FAMILIES[family]), ids()
    mask = padding(input_ids) if masked else None
    loss, slopes, count = gated(decoder, input_ids, mask)
    wide = decoder.to(torch.float64)
    for unit in ("block", "mha+ffn"):
        scores = score(wide, input_ids, "first-order-ppl", unit, mask, report="loss")
        expected = [-float(slopes[one].sum()) / count for one in scores.units]
        assert scores.values == pytest.approx(expected, rel=1e-4, abs=NEAR)
        assert scores.baseline == 0
        second = score(wide, input_ids, "second-order-ppl", unit, mask, report="loss")
        expected = [float((slopes[one].square() / 2 - slopes[one]).sum()) / count for one in scores.units]
        assert second.values == pytest.approx(expected, rel=1e-4, abs=NEAR)
    ppl = score(wide, input_ids, "first-order-ppl", "mha+ffn", mask)
    assert ppl.baseline == pytest.approx(math.exp(loss), rel=NEAR)
    expected = [math.exp(loss - float(slopes[one].sum()) / count) for one in ppl.units]
    assert ppl.values == pytest.approx(expected, rel=1e-4)


def test_it_is_exact_where_the_loss_is_linear_enough():
    # Updates scaled down to a hundredth leave little but the first order.
    decoder, input_ids = load(SIZES).to(torch.float64), ids()
    small = decoder.map(lambda tensor: tensor)
    for block in small.blocks:
        for linear in (block.mha.o, block.ffn.down):
            linear.weight.mul_(1e-2)
    predicted = score(small, input_ids, "first-order-ppl", "mha+ffn")
    exact = score(small.to(torch.float32), input_ids, "ppl", "mha+ffn")
    changes = [value / exact.baseline - 1 for value in exact.values]
    allowed = 1e-5
    assert [value / predicted.baseline - 1 for value in predicted.values] == pytest.approx(
        changes, rel=0.03, abs=allowed
    )
    assert max(map(abs, changes)) > 10 * allowed  # what is compared is far above what may differ


def test_its_baseline_is_the_exact_perplexity_and_samples_in_parts_give_the_same(monkeypatch):
    decoder, input_ids = load(SIZES), ids(samples=5)
    mask = padding(ids(samples=5))
    unpruned = score(decoder, input_ids, "second-order-ppl", attention_mask=mask)
    assert unpruned.baseline == pytest.approx(score(decoder, input_ids, attention_mask=mask).baseline, rel=1e-5)
    monkeypatch.setattr("pyprune.scoring.gradients.ROWS", 20)
    parts = score(decoder, input_ids, "second-order-ppl", attention_mask=mask)
    assert parts.values == pytest.approx(unpruned.values, rel=1e-5)


def test_a_pruned_decoder_is_predicted_in_original_indices():
    decoder = apply(load(SIZES), Pruning(blocks=[0], mha=[2]))
    _, slopes, count = gated(decoder, ids())
    scores = score(decoder.to(torch.float64), ids(), "first-order-ppl", "mha+ffn", report="loss")
    assert scores.units == [("mha", 1), ("ffn", 1), ("ffn", 2), ("mha", 3), ("ffn", 3)]
    expected = [-float(slopes[one].sum()) / count for one in scores.units]
    assert scores.values == pytest.approx(expected, rel=1e-4, abs=NEAR)


@pytest.mark.real_model
def test_on_a_real_model_the_second_order_ranks_blocks_much_like_exact_perplexities(smollm2):
    windows = calibration(smollm2, samples=1, seq_len=32, seed=7)
    exact = score(smollm2, windows.input_ids)
    second = rank_correlation(score(smollm2, windows.input_ids, "second-order-ppl"), exact)
    assert second.spearman > 0.6
