"""Magnitude and weight norms against sums over transformers' named parameters in float64."""

from __future__ import annotations

import math

import pytest
import torch
from plain import FAMILIES, SIZES, model_of, modules

from pyprune import Pruning, apply, load, score
from pyprune.scoring.aggregation import aggregate, neuron_sums
from tests import seeds


@pytest.mark.parametrize("unit", ["block", "mha", "ffn", "mha+ffn"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("power", [1, 2])
def test_magnitude_is_the_sum_over_projections_and_norms_of_every_family(family: str, unit: str, power: int):
    decoder = load(FAMILIES[family])
    expected = {
        one: sum(float(w.detach().abs().pow(power).sum()) for w in weights.values())
        for one, weights in modules(model_of(decoder), decoder, unit).items()
    }
    scores = score(decoder, criterion="magnitude", unit=unit, power=power)
    assert dict(zip(scores.units, scores.values, strict=True)) == pytest.approx(expected, rel=1e-12)
    assert scores.baseline is None
    assert scores.calibration == {}
    assert scores.order() == sorted(expected, key=expected.get)


@pytest.mark.parametrize(("norm", "root"), [("frobenius", lambda w: 1), ("rms", lambda w: math.sqrt(w.numel()))])
def test_weight_norm_adds_the_norms_of_the_projections_alone(norm: str, root):
    decoder = load(FAMILIES["qwen3"])
    expected = {}
    for one, weights in modules(model_of(decoder), decoder, "mha+ffn").items():
        norms = [float(w.detach().norm()) / root(w) for w in weights.values() if w.dim() == 2]
        expected[one] = sum(norms) if norm == "frobenius" else sum(norms) / len(norms)
    scores = score(decoder, criterion="weight-norm", unit="mha+ffn", norm=norm)
    assert dict(zip(scores.units, scores.values, strict=True)) == pytest.approx(expected, rel=1e-12)


def test_squares_of_bfloat16_weights_are_not_rounded_to_bfloat16():
    decoder = load(SIZES, dtype=torch.bfloat16)
    expected = score(decoder.to(torch.float64), criterion="magnitude", power=2).values
    assert score(decoder, criterion="magnitude", power=2).values == pytest.approx(expected, rel=1e-12)


def test_ragged_and_pruned_blocks_keep_their_original_indices():
    decoder = load(SIZES)
    pruned = apply(decoder, Pruning(blocks=[0], mha=[2], neurons={1: [3, 4, 16]}))
    whole, scores = (score(one, criterion="magnitude", unit="mha+ffn") for one in (decoder, pruned))
    assert scores.units == [("mha", 1), ("ffn", 1), ("ffn", 2), ("mha", 3), ("ffn", 3)]
    before = dict(zip(whole.units, whole.values, strict=True))
    after = dict(zip(scores.units, scores.values, strict=True))
    assert after["ffn", 1] < before["ffn", 1]
    assert {one: value for one, value in after.items() if one != ("ffn", 1)} == {
        one: before[one] for one in after if one != ("ffn", 1)
    }


@pytest.mark.parametrize(
    ("within", "across", "expected"),
    [
        ("sum", "sum", 1 + 4 + 2 + 3 + 5),
        ("mean", "sum", 5 / 2 + 10 / 3),
        ("max", "mean", (4 + 5) / 2),
        ("sum", "max", 10),
        ("sum", "prod", math.log(5 * 10)),
        ("prod", "prod", math.log(4 * 30)),
        ("prod", "sum", math.log(4 + 30)),
        ("prod", "mean", math.log((4 + 30) / 2)),
        ("mean", "prod", math.log(5 / 2 * 10 / 3)),
        ("max", "prod", math.log(4 * 5)),
    ],
)
def test_aggregations_by_hand(within: str, across: str, expected: float):
    one, two = torch.tensor([1.0, 4.0]).double(), torch.tensor([2.0, 3.0, 5.0]).double()
    assert aggregate([one, two], within, across) == pytest.approx(expected, rel=1e-14)


def test_a_product_of_thousands_of_small_scores_is_still_told_apart():
    small, smaller = (torch.full((5000,), value, dtype=torch.float64) for value in (1e-9, 1e-10))
    assert aggregate([small], "prod", "sum") == pytest.approx(5000 * math.log(1e-9))
    assert aggregate([smaller], "prod", "sum") < aggregate([small], "prod", "sum")


def test_neuron_sums_do_not_depend_on_how_rows_are_cut(monkeypatch):
    weight = torch.randn(7, 5, generator=seeds.generator(1))
    expected = weight.double().abs().sum(1)
    monkeypatch.setattr("pyprune.scoring.aggregation.CHUNK_FLOATS", 11)
    assert torch.equal(neuron_sums(lambda w: w.abs(), weight), expected)
    assert torch.equal(neuron_sums(lambda w: w.abs(), weight[0]), weight[0].double().abs())
