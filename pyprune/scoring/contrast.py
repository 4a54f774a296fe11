"""Two scores of one model side by side: how far their orders agree, and what would go under each.

Importance depends on the data: the same criterion on two calibration sets can drop different blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyprune.pruning import Pruning, depth
from pyprune.pruning.depth import protected_blocks
from pyprune.scoring.agreement import RankCorrelation, rank_correlation, ranks
from pyprune.scoring.scores import Scores, json_number

Unit = tuple[str, int]
DEFAULT_RATIO = 0.2


@dataclass(frozen=True)
class Difference:
    """A unit's rank under two scores, 1 the most removable; equal scores share the mean of their ranks."""

    unit: Unit
    place_a: float
    place_b: float
    score_a: float
    score_b: float


@dataclass(frozen=True)
class Contrast:
    """`a` and `b`, their rank correlation, the units that go under each, and all shared units, those that differ most
    first."""

    a: Scores
    b: Scores
    correlation: RankCorrelation
    dropped_a: list[Unit]
    dropped_b: list[Unit]
    differences: list[Difference]
    overlap_by_chance: float
    """The overlap to expect of two choices of this size made blindly, each among the units that it may drop."""

    @property
    def both(self) -> list[Unit]:
        """What goes under either score."""
        return [unit for unit in self.dropped_a if unit in self.dropped_b]

    @property
    def only_a(self) -> list[Unit]:
        return [unit for unit in self.dropped_a if unit not in self.dropped_b]

    @property
    def only_b(self) -> list[Unit]:
        return [unit for unit in self.dropped_b if unit not in self.dropped_a]

    @property
    def overlap(self) -> float:
        """The share of the units dropped under the larger of both choices that both drop, 0 to 1."""
        return len(self.both) / max(len(self.dropped_a), len(self.dropped_b))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: units as `[unit, index]`; None for a correlation that does not exist."""
        return {
            "a": _described(self.a),
            "b": _described(self.b),
            "spearman": self.correlation.spearman,
            "kendall": self.correlation.kendall,
            "units": self.correlation.units,
            "dropped": {"a": _listed(self.dropped_a), "b": _listed(self.dropped_b)},
            "both": _listed(self.both),
            "only_a": _listed(self.only_a),
            "only_b": _listed(self.only_b),
            "overlap": self.overlap,
            "overlap_by_chance": self.overlap_by_chance,
            "differences": [
                {
                    "unit": difference.unit[0],
                    "index": difference.unit[1],
                    "place_a": difference.place_a,
                    "place_b": difference.place_b,
                    "score_a": json_number(difference.score_a),
                    "score_b": json_number(difference.score_b),
                }
                for difference in self.differences
            ],
        }


def contrast(
    a: Scores,
    b: Scores,
    *,
    ratio: float | None = None,
    count: int | None = None,
    protect: Iterable[int] | str | None = None,
) -> Contrast:
    """How the scores `a` and `b` agree, and what `depth` would remove by each.

    ratio, count, protect: as in `pyprune.depth`; without ratio and count, a ratio of 20%. InputError as there, and when
    the scores share fewer than two units.
    """
    if ratio is None and count is None:
        ratio = DEFAULT_RATIO
    correlation = rank_correlation(a, b)
    protected = protect if protect is None or isinstance(protect, str) else list(protect)
    dropped_a, dropped_b = (
        dropped_units(scores, depth(scores, ratio=ratio, count=count, protect=protected)) for scores in (a, b)
    )
    free_a, free_b = (_free(scores, protected) for scores in (a, b))
    # |A n B| is |A| |B| |free of both| / (|free of A| |free of B|) on average, and the overlap that over the larger.
    by_chance = min(len(dropped_a), len(dropped_b)) * len(free_a & free_b) / (len(free_a) * len(free_b))
    return Contrast(a, b, correlation, dropped_a, dropped_b, _differences(a, b), by_chance)


def _free(scores: Scores, protect: list[int] | str | None) -> set[Unit]:
    """The units that `depth` may take."""
    kept = protected_blocks(protect, [index for _, index in scores.units])
    return {unit for unit in scores.units if unit[1] not in kept and unit not in scores.protected}


def dropped_units(scores: Scores, pruning: Pruning) -> list[Unit]:
    """The scored units that a pruning takes away, in the order of the model."""
    blocks, sublayers = set(pruning.blocks), {"mha": set(pruning.mha), "ffn": set(pruning.ffn)}
    dropped = [(kind, index) for kind, index in scores.units if index in blocks or index in sublayers.get(kind, ())]
    return sorted(dropped, key=lambda unit: (unit[1], unit[0] != "mha"))


def named(scores: Scores) -> str:
    """A short name of scores: criterion, options, and calibration source."""
    options = "".join(f", {name} {value}" for name, value in scores.options.items())
    source, seed = scores.calibration.get("source"), scores.calibration.get("seed")
    draw = "" if seed is None else f", seed {seed}"  # two draws of one text differ in it
    return scores.criterion + options + (f" on {source}{draw}" if source else "")


def _differences(a: Scores, b: Scores) -> list[Difference]:
    by_a, by_b = (dict(zip(scores.units, scores.values, strict=True)) for scores in (a, b))
    shared = [unit for unit in a.units if unit in by_b]
    ranks_a, ranks_b = (ranks([values[unit] for unit in shared]) for values in (by_a, by_b))
    differences = [
        Difference(unit, rank_a, rank_b, by_a[unit], by_b[unit])
        for unit, rank_a, rank_b in zip(shared, ranks_a, ranks_b, strict=True)
    ]
    return sorted(differences, key=lambda d: (-abs(d.place_a - d.place_b), d.unit[1], d.unit[0]))


def _described(scores: Scores) -> dict[str, Any]:
    return {
        "model": scores.model,
        "criterion": scores.criterion,
        "unit": scores.unit,
        "options": scores.options,
        "baseline": None if scores.baseline is None else json_number(scores.baseline),
        "calibration": scores.calibration,
    }


def _listed(units: list[Unit]) -> list[list[Any]]:
    return [list(unit) for unit in units]
