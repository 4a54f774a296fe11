"""Rank correlations against SciPy's definitions, worked by hand: ties averaged, tau-b."""

from __future__ import annotations

import math

import numpy
import pytest

from pyprune import InputError, Scores
from pyprune.scoring.agreement import kendall, rank_correlation, ranks, spearman
from tests import seeds


def scores(values, units=None, unit="block") -> Scores:
    return Scores("tiny", "any", unit, None, units or [(unit, n) for n in range(len(values))], list(values))


def test_equal_values_share_the_mean_of_their_places():
    assert ranks([3.0, 1.0, 3.0, 2.0, 3.0]) == [4.0, 1.0, 4.0, 2.0, 4.0]
    assert ranks([2.0, 2.0]) == [1.5, 1.5]


def test_hand_computed_correlations_with_a_tie():
    # Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: sum of products about 2.5 is 4.5; spreads 4.5 and 5.
    assert spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    # Six pairs, one tied on the left, five in the same order: 5 / sqrt(5 * 6).
    assert kendall([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(5 / math.sqrt(30))


def test_without_ties_it_is_the_textbook_formula():
    rng = numpy.random.default_rng(seeds.seed(3))
    a, b = rng.normal(size=23), rng.normal(size=23)
    distance = sum((x - y) ** 2 for x, y in zip(ranks(a), ranks(b), strict=True))
    assert spearman(a, b) == pytest.approx(1 - 6 * distance / (23 * (23**2 - 1)))


def test_the_same_order_is_one_and_the_reverse_is_minus_one_whatever_the_values():
    up = [0.1, 5.0, 700.0, math.inf]
    assert (spearman(up, [1, 2, 3, 4]), kendall(up, [1, 2, 3, 4])) == (pytest.approx(1), pytest.approx(1))
    assert (spearman(up, [4, 3, 2, 1]), kendall(up, [4, 3, 2, 1])) == (pytest.approx(-1), pytest.approx(-1))


def test_only_the_units_that_both_have_are_compared():
    a = scores([1.0, 9.0, 2.0, 3.0])
    b = scores([30.0, 20.0, 5.0], [("block", 3), ("block", 2), ("block", 7)])
    correlation = rank_correlation(a, b)
    assert (correlation.units, correlation.spearman, correlation.kendall) == (2, pytest.approx(1), pytest.approx(1))


def test_a_constant_side_has_no_correlation():
    correlation = rank_correlation(scores([1.0, 1.0, 1.0]), scores([1.0, 2.0, 3.0]))
    assert (correlation.spearman, correlation.kendall) == (None, None)


def test_scores_of_other_units_are_refused():
    with pytest.raises(InputError, match="share 0 units; at least 2"):
        rank_correlation(scores([1.0, 2.0]), scores([1.0, 2.0], unit="mha"))
