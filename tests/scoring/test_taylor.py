"""Taylor importance against torch's autograd through transformers' model in float64."""

from __future__ import annotations

import pytest
import torch
from plain import FAMILIES, SIZES, gradients, ids, model_of, modules, padding, token_losses

from pyprune import Pruning, apply, load, score
from pyprune.runtime import differentiable
from pyprune.scoring.gradients import make_batches

# transformers' RMSNorm works in float32 whatever the weights' dtype, and rounds its gradients so.
NEAR = 3e-6


def reference(decoder, unit, input_ids, mask=None, element=None):
    """sum_k sum_i sum_j |W * dL/dW| from autograd, L the mean over all predicted tokens; or `element(W, g, samples)`
    with the gradients g of the whole set's loss and `samples` of each sample's own mean loss."""
    model = model_of(decoder)
    losses = token_losses(model, input_ids, mask)
    joint = gradients(model, torch.cat(losses).mean())
    per_sample = [gradients(model, one.mean()) for one in losses] if element else []
    element = element or (lambda w, g, samples: (w * g).abs().sum())
    return {
        one: sum(
            float(element(w.detach(), joint[id(w)], [each[id(w)] for each in per_sample]).sum())
            for w in weights.values()
        )
        for one, weights in modules(model, decoder, unit).items()
    }


def values(result):
    return dict(zip(result.units, result.values, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_taylor_is_autograds_of_every_family(family: str, masked: bool):
    decoder, input_ids = load(FAMILIES[family]), ids()
    mask = padding(input_ids) if masked else None
    for unit in ("block", "mha+ffn"):
        expected = reference(decoder, unit, input_ids, mask)
        result = score(decoder.to(torch.float64), input_ids, "taylor", unit, mask)
        assert values(result) == pytest.approx(expected, rel=NEAR)
        assert result.units == list(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_weights_are_differentiated_in_float32(dtype):
    decoder, input_ids = load(SIZES, dtype=dtype), ids()
    expected = values(score(decoder.to(torch.float64), input_ids, "taylor"))
    assert values(score(decoder, input_ids, "taylor")) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("salience", "element"),
    [
        ("vectorized", lambda w, g, per_sample: (w * g).reshape(len(w), -1).sum(1).abs()),
        ("second", lambda w, g, per_sample: w**2 * sum(one**2 for one in per_sample) / len(per_sample)),
        (
            "mixed",
            lambda w, g, per_sample: (w * g - 0.5 * w**2 * sum(one**2 for one in per_sample) / len(per_sample)).abs(),
        ),
    ],
)
def test_saliences_of_other_orders(salience: str, element):
    decoder, input_ids = load(FAMILIES["qwen3"]), ids()
    mask = padding(input_ids)
    expected = reference(decoder, "mha+ffn", input_ids, mask, element)
    result = score(decoder.to(torch.float64), input_ids, "taylor", "mha+ffn", mask, salience=salience)
    assert values(result) == pytest.approx(expected, rel=NEAR)


def test_per_sample_salience_takes_the_absolute_value_of_each_samples_share():
    decoder, input_ids = load(SIZES), ids()
    mask = padding(input_ids)
    shares = [8 / 25, 5 / 25, 4 / 25, 8 / 25]

    def element(w, g, per_sample):
        return sum((w * share * one).abs() for share, one in zip(shares, per_sample, strict=True))

    expected = reference(decoder, "block", input_ids, mask, element)
    result = score(decoder.to(torch.float64), input_ids, "taylor", attention_mask=mask, salience="per-sample")
    assert values(result) == pytest.approx(expected, rel=NEAR)
    joint = score(decoder.to(torch.float64), input_ids, "taylor", attention_mask=mask)
    assert all(a > b for a, b in zip(result.values, joint.values, strict=True))


def test_the_papers_code_adds_the_mean_losses_of_batches_where_the_formula_has_one_mean():
    # Four samples of 8, 5, 4 and 8 predicted tokens in batches of three: means over 17 and over 8 tokens.
    decoder, input_ids = load(SIZES), ids()
    mask = padding(input_ids)
    model = model_of(decoder)
    losses = token_losses(model, input_ids, mask)
    first, second = (gradients(model, torch.cat(part).mean()) for part in (losses[:3], losses[3:]))
    expected = {
        one: sum(float((w.detach() * (first[id(w)] + second[id(w)])).abs().sum()) for w in weights.values())
        for one, weights in modules(model, decoder, "block").items()
    }
    wide = decoder.to(torch.float64)
    faithful = score(wide, input_ids, "taylor", attention_mask=mask, variant="faithful", batch=3)
    assert values(faithful) == pytest.approx(expected, rel=NEAR)
    assert faithful.options["variant"] == "faithful"
    corrected = score(wide, input_ids, "taylor", attention_mask=mask)
    ratios = [a / b for a, b in zip(faithful.values, corrected.values, strict=True)]
    assert max(ratios) / min(ratios) > 1.001  # not the same ranking scaled


def test_by_hand_a_token_of_a_short_last_batch_counts_more_in_the_papers_code():
    mask = padding(ids())
    scales = [batch.scale for batch in make_batches(ids(), mask.bool(), 3, lambda positions: 1 / positions)]
    assert scales == [1 / 17, 1 / 8]
    assert [batch.scale for batch in make_batches(ids(), mask.bool(), 4, lambda positions: 1 / positions)] == [1 / 25]


def test_batches_of_equal_size_make_the_papers_code_the_formula_times_their_number():
    wide, input_ids = load(SIZES).to(torch.float64), ids()
    faithful = score(wide, input_ids, "taylor", variant="faithful", batch=2).values
    assert faithful == pytest.approx([2 * value for value in score(wide, input_ids, "taylor").values], rel=1e-12)


def test_samples_in_parts_give_the_same_and_hold_one_blocks_gradients_at_a_time(monkeypatch):
    decoder, input_ids = load(SIZES).to(torch.float64), ids(samples=5)
    expected = score(decoder, input_ids, "taylor").values
    alive = []
    plain = differentiable.block_gradients

    def watched(*given, **options):
        for result in plain(*given, **options):
            alive.append(result.weights)
            assert sum(bool(one) for one in alive) == 1  # all earlier ones were emptied
            yield result

    monkeypatch.setattr("pyprune.scoring.gradients.ROWS", 20)  # two samples of 9 tokens
    monkeypatch.setattr("pyprune.scoring.gradients.block_gradients", watched)
    assert score(decoder, input_ids, "taylor").values == pytest.approx(expected, rel=1e-12)
    assert len(alive) == 3 * 4


def test_a_sample_that_predicts_nothing_changes_nothing():
    decoder, input_ids = load(SIZES).to(torch.float64), ids()
    mask = torch.ones_like(input_ids)
    mask[2, 1:] = 0
    kept = [0, 1, 3]
    for salience in ("first", "second"):
        result = score(decoder, input_ids, "taylor", attention_mask=mask, salience=salience)
        assert result.values == pytest.approx(
            score(decoder, input_ids[kept], "taylor", salience=salience).values, rel=1e-12
        )


def test_ragged_blocks_and_missing_sublayers():
    decoder = apply(load(SIZES), Pruning(blocks=[0], mha=[2], neurons={1: [3, 16]}))
    expected = reference(decoder, "mha+ffn", ids())
    result = score(decoder.to(torch.float64), ids(), "taylor", "mha+ffn")
    assert values(result) == pytest.approx(expected, rel=NEAR)
    assert result.units == [("mha", 1), ("ffn", 1), ("ffn", 2), ("mha", 3), ("ffn", 3)]


def test_a_group_that_predicts_nothing_is_left_out():
    input_ids = torch.zeros(3, 4, dtype=torch.int64)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1]], dtype=torch.bool)
    batches = make_batches(input_ids, mask, 1, lambda positions: 1 / positions)
    assert [(batch.positions, batch.scale) for batch in batches] == [(3, 1 / 3), (2, 1 / 2)]
