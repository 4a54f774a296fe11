"""Weighted least squares from sums, and the ridge that errs least on held-out rows, against float64."""

from __future__ import annotations

import pytest
import torch

from pyprune.models.decoder import Linear
from pyprune.regression.normal_equations import RIDGES, NormalEquations, fit_linear
from pyprune.regression.token_weights import token_weights
from tests import seeds

EXPONENTS = range(-8, 9)


def rows(count, noise, seed):
    """Inputs of unequal scale, and outputs that are linear in them but for noise; the same map for every seed."""
    generator = seeds.generator(seed)
    scales = torch.logspace(0, -1.5, 30, dtype=torch.float64)
    inputs = torch.randn(count, 30, generator=generator, dtype=torch.float64) * scales
    mapping = torch.randn(4, 30, generator=seeds.generator(77), dtype=torch.float64)
    outputs = inputs @ mapping.T + noise * torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return inputs, outputs


@pytest.mark.parametrize(
    ("noise", "ridges", "where"),
    [(1e-4, RIDGES, "below"), (3.0, RIDGES, "within"), (3.0, (1e-4, 1e-3, 1e-2), "above")],
    ids=["below", "within", "above"],
)
def test_the_grid_goes_on_beyond_an_end_that_wins(noise, ridges, where):
    (inputs, outputs), (others, wished) = rows(60, noise, 1), rows(4000, 0.0, 2)
    linear = Linear(torch.zeros(4, 30, dtype=torch.float64))
    fitted, held_out = (NormalEquations(30, 4) for _ in range(2))
    fitted.add(inputs, outputs, torch.ones(len(inputs), dtype=torch.float64))
    held_out.add(others, wished, torch.ones(len(others), dtype=torch.float64))
    gram = inputs.T @ inputs
    errors = {}
    for exponent in EXPONENTS:
        penalty = 10.0**exponent * gram.diagonal().mean() * torch.eye(30, dtype=torch.float64)
        solution = torch.linalg.solve(gram + penalty, inputs.T @ outputs)
        errors[exponent] = float((others @ solution - wished).square().sum() / wished.square().sum())
    best = min(errors, key=errors.__getitem__)
    low, high = min(ridges), max(ridges)
    assert {"below": 10.0**best < low, "within": low <= 10.0**best <= high, "above": 10.0**best > high}[where]
    fit = fit_linear(linear, fitted, held_out, ridges)
    assert fit.ridge == pytest.approx(10.0**best)
    assert fit.before == pytest.approx(1.0)
    assert fit.after == pytest.approx(errors[best], rel=1e-6)


def test_a_ridge_that_is_a_number_stays_alone():
    (inputs, outputs), (others, wished) = rows(60, 1e-4, 1), rows(4000, 0.0, 2)
    fitted, held_out = (NormalEquations(30, 4) for _ in range(2))
    fitted.add(inputs, outputs, torch.ones(len(inputs), dtype=torch.float64))
    held_out.add(others, wished, torch.ones(len(others), dtype=torch.float64))
    assert fit_linear(Linear(torch.zeros(4, 30, dtype=torch.float64)), fitted, held_out, (10.0,)).ridge == 10.0


def test_inputs_that_are_always_zero_keep_their_weights_without_a_ridge():
    generator = seeds.generator(6)
    a, y = (torch.randn(60, n, generator=generator, dtype=torch.float64) for n in (5, 3))
    old = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    sums = NormalEquations(7, 3)
    sums.add(torch.nn.functional.pad(a, (0, 2)), y, torch.ones(60, dtype=torch.float64))
    fit = fit_linear(Linear(old), sums, sums, (0.0,))
    torch.testing.assert_close(fit.linear.weight[:, :5], torch.linalg.lstsq(a, y).solution.T)
    torch.testing.assert_close(fit.linear.weight[:, 5:], old[:, 5:])


def test_sums_of_parts_are_the_sums_of_all():
    generator = seeds.generator(5)
    a, y = (torch.randn(700, n, generator=generator, dtype=torch.float64) for n in (530, 7))
    w = torch.rand(700, generator=generator, dtype=torch.float64)
    whole, parts = (NormalEquations(530, 7, bias=True) for _ in range(2))
    whole.add(a, y, w)
    for rows in (slice(0, 300), slice(300, 700)):
        parts.add(a[rows], y[rows], w[rows])
    ones = torch.cat([a, torch.ones(700, 1, dtype=torch.float64)], 1)
    for sums in (whole, parts):
        torch.testing.assert_close(sums.gram, ones.T @ (ones * w[:, None]))
        torch.testing.assert_close(sums.cross, ones.T @ (y * w[:, None]))
    weight = torch.randn(7, 531, generator=generator, dtype=torch.float64)
    missing = ((ones @ weight.T - y).square() * w[:, None]).sum() / (y.square() * w[:, None]).sum()
    assert whole.error(weight) == pytest.approx(float(missing), rel=1e-10)


def test_relative_weights_forget_no_token_and_own_none():
    target = torch.tensor([[[300.0, 400.0], [3.0, 4.0], [0.0, 0.0]]])
    weights = token_weights(target, "relative", 1.0)
    torch.testing.assert_close(weights * target.square().mean(-1), torch.tensor([[1.0, 1.0, 0.0]]))
    assert token_weights(target, "relative", 0.0)[0, 0] == 0
