"""The batched scorer against the naive loop: one forward pass of Hugging Face's model for each removed unit."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from pyprune import Decoder, InputError, Pruning, apply, load, perplexity, score, to_transformers
from tests import seeds

S, T = 3, 17


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    return torch.randint(0, 131, (S, T), generator=seeds.generator(0))


def naive(decoder: Decoder, ids: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    with torch.no_grad():
        logits = to_transformers(decoder)(ids, attention_mask=mask).logits[:, :-1].double()
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    if mask is not None:
        losses = losses[(mask[:, 1:] * mask[:, :-1]) == 1]
    return math.exp(losses.mean())


@pytest.mark.parametrize("unit", ["block", "mha", "ffn"])
def test_every_score_equals_the_naive_loop(tiny, samples, unit: str):
    result = score(tiny, samples, unit=unit)
    assert result.units == [(unit, n) for n in range(5)]
    key = "blocks" if unit == "block" else unit
    expected = [naive(apply(tiny, Pruning(**{key: [n]})), samples) for n in range(5)]
    assert result.baseline == pytest.approx(naive(tiny, samples), rel=1e-4)
    assert result.values == pytest.approx(expected, rel=1e-4)
    assert result.order() == [(unit, n) for n in sorted(range(5), key=expected.__getitem__)]


def test_sublayers_of_both_kinds_are_ranked_together(tiny, samples):
    together, mha, ffn = (score(tiny, samples, unit=unit) for unit in ("mha+ffn", "mha", "ffn"))
    assert together.units == [(kind, n) for n in range(5) for kind in ("mha", "ffn")]
    assert together.values[::2] == pytest.approx(mha.values, rel=1e-6)
    assert together.values[1::2] == pytest.approx(ffn.values, rel=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_neither_seen_nor_scored(tiny, samples, side: str):
    mask = torch.ones_like(samples)
    for row, pad in enumerate((0, 5, 9)):
        mask[row, slice(0, pad) if side == "left" else slice(T - pad, T)] = 0
    result = score(tiny, samples, attention_mask=mask)
    assert result.baseline == pytest.approx(naive(tiny, samples, mask), rel=1e-4)
    expected = [naive(apply(tiny, Pruning(blocks=[n])), samples, mask) for n in range(5)]
    assert result.values == pytest.approx(expected, rel=1e-4)
    other = samples.clone()
    other[mask == 0] = -1  # not a token, and not looked at
    assert score(tiny, other, attention_mask=mask).values == pytest.approx(result.values, rel=1e-6)


def test_perplexity_is_the_baseline_of_the_scores(tiny, samples):
    assert perplexity(tiny, samples) == pytest.approx(score(tiny, samples).baseline, rel=1e-6)
    assert perplexity(tiny, samples) == pytest.approx(naive(tiny, samples), rel=1e-4)


def test_a_pruned_decoder_is_scored_in_original_indices(tiny, samples):
    pruned = apply(tiny, Pruning(blocks=[1], mha=[2]))
    blocks, mha = score(pruned, samples), score(pruned, samples, unit="mha")
    assert [index for _, index in blocks.units] == [0, 2, 3, 4]
    assert [index for _, index in mha.units] == [0, 3, 4]
    expected = naive(apply(tiny, Pruning(blocks=[1, 3], mha=[2])), samples)
    assert dict(zip(blocks.units, blocks.values, strict=True))["block", 3] == pytest.approx(expected, rel=1e-4)


def test_a_hugging_face_model_is_scored_as_it_stands_and_left_unchanged(tiny, samples):
    model = to_transformers(tiny).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert score(model, samples).values == pytest.approx(score(tiny, samples).values, rel=1e-6)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_half_precision_weights_keep_the_order_of_clear_differences(tiny, samples):
    low = tiny.to(torch.bfloat16)
    result, exact = score(low, samples), score(low.to(torch.float32), samples)
    # Where the processor multiplies bfloat16 itself, activations are rounded as plain PyTorch rounds them.
    plain = [naive(apply(low, Pruning(blocks=[index])), samples) for _, index in result.units]
    theirs = max(abs(one - true) for one, true in zip(plain, exact.values, strict=True))
    ours = max(abs(one - true) for one, true in zip(result.values, exact.values, strict=True))
    assert ours <= 2 * theirs + 1e-4 * max(exact.values)
    order = sorted(zip(exact.values, result.values, strict=True))
    clear = [(low, high) for (x, low), (y, high) in itertools.pairwise(order) if y > 1.002 * x]
    assert clear
    assert all(low < high for low, high in clear)


def test_tied_heads_and_many_rows_take_the_same_road():
    decoder = load("shape:hidden=32,blocks=3,heads=2,kv_heads=1,head_dim=16,ffn=40,vocab=3000,tied=1")
    ids = torch.randint(0, 3000, (20, 140), generator=seeds.generator(1))
    result = score(decoder, ids)
    assert result.baseline == pytest.approx(naive(decoder, ids), rel=1e-4)
    assert result.values[1] == pytest.approx(naive(apply(decoder, Pruning(blocks=[1])), ids), rel=1e-4)


def test_sizes_and_fingerprint_travel_with_the_scores(tiny, samples):
    result = score(tiny, samples)
    assert result.parameters == tiny.parameters()
    assert sum(result.unit_parameters) == sum(t.numel() for b in tiny.blocks for _, t in b.tensors())
    assert result.calibration["samples"] == S
    assert result.calibration["seq_len"] == T
    other = samples.clone()
    other[0, 0] = (other[0, 0] + 1) % 131
    assert score(tiny, other).calibration["sha256"] != result.calibration["sha256"]


def test_progress_reaches_its_end_step_by_step(tiny, samples):
    seen = []
    score(tiny, samples, unit="mha", progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(criterion="magic"), "criterion: 'magic'"),
        (dict(unit="head"), "unit: 'head'"),
        (dict(input_ids=torch.tensor([[1, 131]])), "token id 131"),
        (dict(input_ids=torch.tensor([[1]])), "1 token a sample"),
        (dict(input_ids=torch.zeros(0, 4, dtype=torch.long)), "input_ids"),
        (dict(attention_mask=torch.ones(1, 2)), "attention_mask: shape"),
        (dict(attention_mask=torch.zeros(S, T)), "no token follows"),
    ],
)
def test_bad_input_is_refused(tiny, samples, change: dict, message: str):
    with pytest.raises(InputError, match=message):
        score(**{"model": tiny, "input_ids": samples, **change})


def test_samples_beyond_the_context_are_refused(tiny, samples):
    with pytest.raises(InputError, match="17 tokens a sample given; up to 16, the model's context"):
        perplexity(dataclasses.replace(tiny, max_positions=16), samples)


def test_ids_may_be_of_any_integer_type(tiny, samples):
    assert score(tiny, samples.int()).values == score(tiny, samples).values


def test_a_loss_that_is_not_a_number_is_reported_not_ranked(tiny, samples):
    huge = dataclasses.replace(tiny, norm=torch.full_like(tiny.norm, float("nan")))
    with pytest.raises(ArithmeticError, match="not a number"):
        perplexity(huge, samples)
