"""How far two scores agree on what can go: rank correlations over the units that both have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from pyprune.errors import InputError
from pyprune.scoring.scores import Scores


@dataclass(frozen=True)
class RankCorrelation:
    """Agreement of two rankings of the same `units`, 1 where they are the same and -1 where one is the other reversed.

    `spearman`: Pearson's correlation of the ranks, equal scores sharing their mean rank. `kendall`: tau-b, the share of
    pairs in the same order less that in the opposite one, corrected for ties. None where one side scores all units the
    same.
    """

    spearman: float | None
    kendall: float | None
    units: int


def rank_correlation(a: Scores, b: Scores) -> RankCorrelation:
    """The rank correlation of two scores over the units that both have; InputError when they share fewer than two."""
    by_b = dict(zip(b.units, b.values, strict=True))
    pairs = [(value, by_b[unit]) for unit, value in zip(a.units, a.values, strict=True) if unit in by_b]
    if len(pairs) < 2:
        raise InputError(
            f"scores {a.criterion} of unit {a.unit} and {b.criterion} of unit {b.unit} share {len(pairs)} units;"
            " at least 2 are needed to compare their order"
        )
    values_a, values_b = zip(*pairs, strict=True)
    return RankCorrelation(spearman(values_a, values_b), kendall(values_a, values_b), len(pairs))


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation of two sequences of the same length; None where one is constant."""
    x, y = ranks(a), ranks(b)
    mean = (len(x) + 1) / 2
    covariance = sum((i - mean) * (j - mean) for i, j in zip(x, y, strict=True))
    deviations = math.sqrt(sum((i - mean) ** 2 for i in x)) * math.sqrt(sum((j - mean) ** 2 for j in y))
    return covariance / deviations if deviations else None


def kendall(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-b of two sequences of the same length; None where one is constant."""
    signs = [(_sign(x, u), _sign(y, v)) for (x, y), (u, v) in combinations(zip(a, b, strict=True), 2)]
    untied = math.sqrt(sum(s != 0 for s, _ in signs)) * math.sqrt(sum(t != 0 for _, t in signs))
    return sum(s * t for s, t in signs) / untied if untied else None


def ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value in ascending order, from 1; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    result = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for position in order[start:stop]:
            result[position] = (start + 1 + stop) / 2
        start = stop
    return result


def _sign(x: float, y: float) -> int:
    return (x > y) - (x < y)
