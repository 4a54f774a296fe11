"""depth: the most removable units, by count or by ratio, around what is protected."""

from dataclasses import replace

import pytest
import torch

from pyprune.errors import InputError
from pyprune.models import load
from pyprune.models.pruning import original_name
from pyprune.pruning import Pruning, apply, depth
from pyprune.pruning.budget import unit_parameters
from pyprune.scoring import Scores, score

VALUES = [9.0, 3.0, 1.0, 4.0, 2.0, 8.0]


def ranked(unit="block", values=VALUES, **more):
    return Scores("tiny", "ppl", unit, 1.0, [(unit, i) for i in range(len(values))], values, {}, **more)


def test_count_takes_the_lowest_scores():
    assert depth(ranked(), count=3) == Pruning("tiny", blocks=[1, 2, 4], made_by="depth ppl block")


@pytest.mark.parametrize("unit", ["mha", "ffn"])
def test_sublayers_go_into_their_own_list(unit):
    pruning = depth(ranked(unit), count=2)
    assert getattr(pruning, unit) == (2, 4)
    assert pruning.blocks == ()


def test_all_attention_sublayers_may_go():
    assert depth(ranked("mha"), count=6).mha == (0, 1, 2, 3, 4, 5)


def test_sublayers_of_both_kinds_ranked_together():
    units = [("mha", 0), ("mha", 1), ("ffn", 0), ("ffn", 1)]
    scores = Scores("tiny", "ppl", "sublayers", None, units, [1.0, 4.0, 3.0, 2.0])
    assert depth(scores, count=2) == Pruning("tiny", mha=[0], ffn=[1], made_by="depth ppl sublayers")
    assert depth(scores, count=3).blocks == (0,)


@pytest.mark.parametrize("protect", ["first=2,last=1", [0, 1, 5], (5, 1, 0), "0,1,5", "last=1, 0, 1", {0, 1, 5}])
def test_protected_blocks_stay(protect):
    assert depth(ranked(), count=2, protect=protect).blocks == (2, 4)
    assert depth(ranked("ffn"), count=2, protect=protect).ffn == (2, 4)


@pytest.mark.parametrize("protect", [None, (), "", "first=0,last=0"])
def test_nothing_protected(protect):
    assert depth(ranked(), count=1, protect=protect).blocks == (2,)


def test_protect_counts_over_the_blocks_that_a_pruned_decoder_has(make_decoder):
    decoder = apply(make_decoder(blocks=6), Pruning(blocks=[0, 5]))
    units = [("block", index) for index in (1, 2, 3, 4)]
    scores = Scores("tiny", "ppl", "block", None, units, [1.0, 2.0, 3.0, 0.5])
    assert depth(scores, decoder, count=1, protect="first=1,last=1").blocks == (2,)


def test_ratio_without_the_decoder_uses_the_scores_own_sizes(make_decoder):
    decoder = make_decoder(blocks=6)
    sizes = unit_parameters(decoder, "block")
    scores = ranked(parameters=decoder.parameters(), unit_parameters=list(sizes.values()))
    ratio = 2.3 * sizes[0] / decoder.parameters()
    assert depth(scores, ratio=ratio).blocks == (2, 4)
    assert depth(scores, ratio=ratio) == depth(ranked(), decoder, ratio=ratio)


def test_ratio_adds_up_the_units_in_the_order_of_removal():
    # In order of removal the sizes are 40, 10, 10, ...: a third of the 120 is nearest to the first unit alone.
    scores = ranked(parameters=120, unit_parameters=[10, 10, 40, 10, 10, 10])
    assert depth(scores, ratio=1 / 3).blocks == (2,)
    assert depth(scores, ratio=1 / 3, protect=[2]).blocks == (1, 3, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "exactly one"),
        ({"ratio": 0.2, "count": 2}, "exactly one"),
        ({"ratio": 0.2}, "no parameter counts"),
        ({"count": 0}, "count 0"),
        ({"count": -1}, "count -1"),
        ({"count": 2.0}, r"count 2\.0"),
        ({"count": 7}, "count 7: 1 to 6"),
        ({"count": 6}, "all 6 blocks"),
        ({"count": 4, "protect": "first=3"}, "count 4: 1 to 3"),
        ({"count": 1, "protect": range(6)}, "leaves nothing"),
        ({"count": 1, "protect": "first=9"}, "leaves nothing"),
        ({"count": 1, "protect": "first=x"}, "protect 'first=x'"),
        ({"count": 1, "protect": "middle=2"}, "protect 'middle=2'"),
        ({"count": 1, "protect": "=2"}, "protect '=2'"),
        ({"count": 1, "protect": "first"}, "protect 'first'"),
        ({"count": 1, "protect": [6]}, "protect 6"),
        ({"count": 1, "protect": "6"}, "protect 6"),
        ({"count": 1, "protect": [-1]}, "-1"),
        ({"count": 1, "protect": 3}, "3"),
    ],
)
def test_bad_requests_are_refused_by_their_value(arguments, named):
    with pytest.raises(InputError, match=named):
        depth(ranked(), **arguments)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.2, 1.2, float("nan"), "20%", 0.01, 0.95])
def test_bad_ratios_are_refused(ratio):
    with pytest.raises(InputError, match="ratio"):
        depth(ranked(parameters=100, unit_parameters=[10] * 6), ratio=ratio)


def test_scores_of_units_the_decoder_lacks_are_refused(make_decoder):
    with pytest.raises(InputError, match="block 5"):
        depth(ranked(), apply(make_decoder(blocks=6), Pruning(blocks=[5])), count=1)


def test_blocks_and_sublayers_are_not_ranked_together():
    scores = Scores("tiny", "ppl", "all", None, [("block", 0), ("mha", 1)], [1.0, 2.0])
    with pytest.raises(InputError, match="block, mha"):
        depth(scores, count=1)


def scores_of(decoder, unit="block", **changes):
    sizes = unit_parameters(decoder, unit)
    values = [float(10 - index) for index in sizes]
    more = {"parameters": decoder.parameters(), "unit_parameters": list(sizes.values())} | changes
    return Scores(decoder.name, "ppl", unit, 1.0, [(unit, index) for index in sizes], values, {}, **more)


def test_scores_of_another_model_are_refused_with_both_sizes(make_decoder):
    decoder, other = make_decoder(blocks=6), make_decoder(blocks=6, vocab=31)
    assert depth(scores_of(decoder), decoder, count=2).blocks == (4, 5)
    with pytest.raises(InputError, match=f"the model had {other.parameters()} .* has {decoder.parameters()} in tiny"):
        depth(scores_of(other), decoder, count=2)


def test_scores_of_units_of_another_size_are_refused_with_both_sizes(make_decoder):
    decoder = make_decoder(blocks=6)
    sizes = list(unit_parameters(decoder, "ffn").values())
    scores = scores_of(decoder, "ffn", unit_parameters=[*sizes[:3], sizes[3] + 1, *sizes[4:]])
    with pytest.raises(InputError, match=f"ffn 3 had {sizes[3] + 1} parameters .* has {sizes[3]} in tiny"):
        depth(scores, decoder, ratio=0.2)


def test_prunings_of_a_reloaded_checkpoint_compose_with_its_record(tmp_path):
    decoder = load("shape:tiny")
    apply(decoder, Pruning(blocks=[1])).save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert (again.name, original_name(again), original_name(decoder)) == ("saved", "shape:tiny", "shape:tiny")
    assert score(again, torch.arange(16).view(2, 8)).model == "shape:tiny"
    second = depth(scores_of(again), again, count=1)
    assert (second.model, second.blocks) == ("shape:tiny", (3,))
    assert (again.pruning | second).blocks == (1, 3)


def test_a_record_without_a_name_leaves_the_decoders_own(make_decoder):
    decoder = replace(make_decoder(), pruning=Pruning(blocks=[1]))
    assert original_name(decoder) == "tiny"
