"""Two scores side by side: what goes under each, what both share, and where their places part."""

from __future__ import annotations

import json
import math

import pytest

from pyprune.errors import InputError
from pyprune.pruning import Pruning
from pyprune.scoring import Scores, contrast
from pyprune.scoring.contrast import dropped_units, named


def scores(values: list[float], unit: str = "block", **given: object) -> Scores:
    units = [(unit, index) for index in range(len(values))]
    return Scores("m", given.pop("criterion", "ppl"), unit, 1.0, units, values, **given)


A = scores([9, 1, 2, 3, 8, 7], calibration={"source": "novels.txt"}, parameters=100, unit_parameters=[10] * 6)
B = scores([9, 2, 7, 1, 8, 3], calibration={"source": "mail.txt"}, parameters=100, unit_parameters=[10] * 6)


def test_what_goes_under_each_is_what_depth_removes_by_it():
    result = contrast(A, B, count=3)
    assert result.dropped_a == [("block", 1), ("block", 2), ("block", 3)]
    assert result.dropped_b == [("block", 1), ("block", 3), ("block", 5)]
    assert (result.both, result.only_a, result.only_b) == (
        [("block", 1), ("block", 3)],
        [("block", 2)],
        [("block", 5)],
    )
    assert result.overlap == pytest.approx(2 / 3)
    assert result.overlap_by_chance == pytest.approx(3 / 6)


@pytest.mark.parametrize(("protect", "units"), [(None, 6), ("0", 5), ("first=1,last=2", 3)])
def test_by_chance_only_units_that_may_go_overlap(protect, units):
    assert contrast(A, B, count=2, protect=protect).overlap_by_chance == pytest.approx(2 / units)


def test_a_ratio_of_20_percent_is_taken_where_no_amount_is_given():
    assert len(contrast(A, B).dropped_a) == 2
    assert contrast(A, B, ratio=0.4).dropped_b == contrast(A, B, count=4).dropped_b


def test_protected_blocks_stay_under_both_whether_they_are_given_or_kept_with_the_scores():
    result = contrast(A, B, count=2, protect="1")
    assert (result.dropped_a, result.dropped_b) == ([("block", 2), ("block", 3)], [("block", 3), ("block", 5)])
    kept = scores(A.values, protected=[("block", 1)])
    assert contrast(kept, B, count=2).dropped_a == [("block", 2), ("block", 3)]
    assert contrast(A, B, count=2, protect=iter([1])).dropped_b == [("block", 3), ("block", 5)]


def test_units_are_listed_from_the_greatest_difference_of_places():
    # Places under A: 6 1 2 3 5 4; under B: 6 2 4 1 5 3.
    result = contrast(A, B, count=1).differences
    assert [(one.unit[1], one.place_a, one.place_b) for one in result] == [
        (2, 2, 4), (3, 3, 1), (1, 1, 2), (5, 4, 3), (0, 6, 6), (4, 5, 5),
    ]  # fmt: skip
    assert (result[0].score_a, result[0].score_b) == (2, 7)


def test_correlations_are_those_of_the_ranks():
    result = contrast(A, B, count=1).correlation
    # Differences of ranks 0 1 2 2 0 1: 1 - 6 * 10 / (6 * 35).
    assert result.spearman == pytest.approx(1 - 60 / 210)
    assert contrast(A, A, count=1).correlation.spearman == pytest.approx(1)
    assert contrast(A, scores([-value for value in A.values]), count=1).correlation.kendall == pytest.approx(-1)


def test_only_shared_units_are_compared():
    fewer = Scores("m", "ppl", "block", None, [("block", 5), ("block", 1), ("block", 2)], [1.0, 2.0, 3.0])
    result = contrast(A, fewer, count=1)
    assert result.correlation.units == 3
    assert sorted(one.unit[1] for one in result.differences) == [1, 2, 5]


def test_scores_of_different_units_and_amounts_that_cannot_be_had_are_refused():
    with pytest.raises(InputError, match="share 0 units"):
        contrast(A, scores(A.values, unit="mha"), count=1)
    with pytest.raises(InputError, match="1 to 6 units"):
        contrast(A, B, count=7)
    with pytest.raises(InputError, match="a ratio needs the decoder, or give a count"):
        contrast(A, scores(A.values))


def test_the_json_form_is_json_even_with_an_infinite_score_and_no_correlation():
    endless = scores([math.inf, 1, 2, 3, 4, 5])
    result = json.loads(json.dumps(contrast(endless, scores([1.0] * 6), count=2).to_dict(), allow_nan=False))
    assert result["spearman"] is None
    assert result["dropped"] == {"a": [["block", 1], ["block", 2]], "b": [["block", 0], ["block", 1]]}
    assert (result["both"], result["only_a"], result["only_b"]) == ([["block", 1]], [["block", 2]], [["block", 0]])
    assert {"unit": "block", "index": 0, "place_a": 6, "place_b": 3.5, "score_a": "inf", "score_b": 1.0} in result[
        "differences"
    ]
    assert result["a"]["criterion"] == "ppl"


def test_a_block_that_goes_takes_both_of_its_scored_sublayers():
    units = [(kind, index) for index in range(3) for kind in ("ffn", "mha")]
    sublayers = Scores("m", "ppl", "mha+ffn", None, units, [1.0] * 6)
    assert dropped_units(sublayers, Pruning(blocks=(1,), ffn=(2,))) == [("mha", 1), ("ffn", 1), ("ffn", 2)]


def test_scores_are_named_by_criterion_options_and_source():
    assert named(A) == "ppl on novels.txt"
    assert named(scores([1, 2], calibration={"source": "novels.txt", "seed": 3})) == "ppl on novels.txt, seed 3"
    assert named(scores([1, 2], criterion="magnitude", options={"power": 2})) == "magnitude, power 2"
