"""The ridge that errs least on held-out rows, wherever it lies, against a search over all of them in float64."""

from __future__ import annotations

import pytest
import torch

from pyprune.models.decoder import Linear
from pyprune.regression.normal_equations import RIDGES, NormalEquations, fit_linear
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
