"""The fused distillation loss against plain float64 formulas over whole logits; gradients against differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pyprune.retraining.divergence import divergence
from pyprune.retraining.linear_distillation import Mixture, linear_distillation
from tests import seeds
from tests.judge import assert_no_worse_than_torch

KINDS = ("forward-kl", "reverse-kl")
TOP_K = (None, 1, 5)


def plain_divergence(logits, teacher, kind, temperature, top_k):
    """By probabilities of every outcome, those of the rest added up."""
    p, q = (logits / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    if top_k is not None:
        likely = q.argsort(-1, descending=True)[:, :top_k]
        p, q = (
            torch.cat([mass.gather(-1, likely), 1 - mass.gather(-1, likely).sum(-1, keepdim=True)], -1)
            for mass in (p, q)
        )
    if kind == "reverse-kl":
        p, q = q, p
    return (q * (q.log() - p.log())).sum(-1)


def plain_loss(hidden, weight, bias, targets, teacher, mixture):
    logits = F.linear(hidden, weight, bias)
    taught = plain_divergence(logits, teacher, mixture.kind, mixture.temperature, mixture.top_k).mean()
    share = mixture.weight * mixture.temperature**2
    return (1 - mixture.weight) * F.cross_entropy(logits, targets) + share * taught


def case(rows=9, hidden=7, vocab=23, dtype=torch.float64):
    draw = seeds.generator(5)
    states = torch.randn(rows, hidden, generator=draw, dtype=torch.float64)
    weight = torch.randn(vocab, hidden, generator=draw, dtype=torch.float64)
    bias = torch.randn(vocab, generator=draw, dtype=torch.float64)
    teacher = 2 * torch.randn(rows, vocab, generator=draw, dtype=torch.float64)
    targets = torch.randint(0, vocab, (rows,), generator=draw)
    return [t.to(dtype) for t in (states, weight, bias, teacher)] + [targets]


@pytest.mark.parametrize("top_k", TOP_K)
@pytest.mark.parametrize("kind", KINDS)
def test_divergence_and_slope_are_those_of_the_formula(kind, top_k):
    _, _, _, teacher, _ = case()
    logits = torch.randn(9, 23, generator=seeds.generator(6), dtype=torch.float64, requires_grad=True)
    expected = plain_divergence(logits, teacher, kind, 1.7, top_k)
    (expected_slope,) = torch.autograd.grad(expected.sum(), logits)
    value, slope = divergence(logits.detach(), teacher.clone(), kind, 1.7, top_k)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_top_k_is_a_lower_bound_that_vanishes_for_equal_models(kind):
    _, _, _, teacher, _ = case()
    logits = torch.randn(9, 23, generator=seeds.generator(6), dtype=torch.float64)
    whole, _ = divergence(logits, teacher.clone(), kind, 1.0, None)
    before = torch.zeros(9, dtype=torch.float64)
    for top_k in (1, 4, 22):
        value, _ = divergence(logits, teacher.clone(), kind, 1.0, top_k)
        assert (value <= whole + 1e-12).all()
        assert (value >= before - 1e-12).all()
        before = value
    torch.testing.assert_close(before, whole)  # 22 of 23 and the rest: every token is an outcome
    same, slope = divergence(teacher.clone(), teacher.clone(), kind, 1.0, 4)
    assert same.abs().max() < 1e-12
    assert slope.abs().max() < 1e-12


@pytest.mark.parametrize("top_k", TOP_K)
@pytest.mark.parametrize(("kind", "weight"), [("forward-kl", 0.3), ("reverse-kl", 1.0)])
def test_gradients_of_the_fused_loss(kind, top_k, weight):
    hidden, head, bias, teacher, targets = case()
    mixture = Mixture(kind, top_k, temperature=1.5, weight=weight)
    leaves = [t.requires_grad_() for t in (hidden, head, bias)]

    def fused(*parts):
        return linear_distillation(*parts, targets, lambda part: teacher[part].clone(), mixture, tile_rows=4)

    torch.testing.assert_close(fused(*leaves), plain_loss(*leaves, targets, teacher, mixture))
    expected = torch.autograd.grad(plain_loss(*leaves, targets, teacher, mixture), leaves)
    torch.testing.assert_close(torch.autograd.grad(fused(*leaves), leaves), expected)
    assert torch.autograd.gradcheck(fused, leaves)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [None, 50])
def test_float32_errs_no_more_than_plain_pytorch(kind, top_k):
    exact = case(rows=33, hidden=48, vocab=517)
    exact[3] = exact[3] + 6  # a shift of the logits is no change
    single = [t.float() for t in exact[:4]]
    mixture = Mixture(kind, top_k, temperature=2.0, weight=0.6)

    def of(parts, loss):
        leaves = [t.detach().clone().requires_grad_() for t in parts[:3]]
        value = loss(leaves, parts[3])
        return value.detach(), *torch.autograd.grad(value, leaves)

    def plain(leaves, teacher):
        return plain_loss(*leaves, exact[4], teacher, mixture)

    def fused(leaves, teacher):
        return linear_distillation(*leaves, exact[4], lambda part: teacher[part].clone(), mixture, tile_rows=8)

    for ours, theirs, right in zip(of(single, fused), of(single, plain), of(exact, plain), strict=True):
        assert_no_worse_than_torch(ours, theirs, right)


def test_a_sure_teacher_leaves_a_rest_that_is_not_rounding():
    teacher = torch.zeros(1, 64)
    teacher[0, 3] = 40.0  # the rest has a mass of 63 e^-40, below the roundings of 1
    logits = torch.zeros(1, 64)
    value, slope = divergence(logits, teacher.clone(), "reverse-kl", 1.0, 1)
    exact, exact_slope = divergence(logits.double(), teacher.double(), "reverse-kl", 1.0, 1)
    assert torch.isfinite(value).all()
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(slope.double(), exact_slope, rtol=1e-4, atol=1e-7)


def test_nothing_is_kept_for_what_needs_no_gradient():
    hidden, head, bias, teacher, targets = case()
    hidden.requires_grad_()
    loss = linear_distillation(hidden, head, bias, targets, lambda part: teacher[part].clone(), Mixture())
    kept = [saved for saved in loss.grad_fn.saved_tensors if saved is not None]
    assert [tuple(saved.shape) for saved in kept] == [tuple(hidden.shape)]
    loss.backward()
    assert head.grad is None
    assert bias.grad is None
