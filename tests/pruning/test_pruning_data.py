"""Pruning: the data, its normal form, its JSON, and what it refuses."""

import json

import numpy as np
import pytest
import torch

from pyprune.errors import InputError
from pyprune.pruning import Pruning

FULL = Pruning(
    model="tiny",
    blocks=[1],
    mha=[0],
    ffn=[2],
    kv_groups={3: [2, 0]},
    neurons={0: [5, 3], 3: [12]},
    pad_to=8,
    made_by="by hand",
)


def test_indices_are_sorted():
    pruning = Pruning(blocks=[3, 1], kv_groups={2: [1, 0], 0: [2]})
    assert pruning.blocks == (1, 3)
    assert list(pruning.kv_groups.items()) == [(0, (2,)), (2, (0, 1))]


def test_a_block_removed_whole_subsumes_its_parts():
    pruning = Pruning(blocks=[1], mha=[1], ffn=[1], kv_groups={1: [0]}, neurons={1: [4]})
    assert pruning == Pruning(blocks=[1])


def test_a_removed_half_subsumes_its_groups_or_neurons_only():
    pruning = Pruning(mha=[0], ffn=[1], kv_groups={0: [1], 1: [2]}, neurons={0: [3], 1: [4]})
    assert pruning.kv_groups == {1: (2,)}
    assert pruning.neurons == {0: (3,)}


def test_both_sublayers_are_the_block():
    assert Pruning(mha=[2, 0], ffn=[2]) == Pruning(blocks=[2], mha=[0])


def test_empty_layer_lists_vanish():
    assert Pruning(neurons={3: []}) == Pruning()
    assert not Pruning(neurons={3: []})


def test_numpy_and_torch_indices_become_plain_integers(tmp_path):
    pruning = Pruning(blocks=np.array([2, 1]), mha=torch.tensor([0]), neurons={np.int64(3): np.arange(2)})
    assert pruning == Pruning(blocks=[1, 2], mha=[0], neurons={3: [0, 1]})
    pruning.to_json(tmp_path / "pruning.json")
    assert Pruning.from_json(tmp_path / "pruning.json") == pruning


def test_json_round_trip_and_its_keys(tmp_path):
    FULL.to_json(tmp_path / "pruning.json")
    data = json.loads((tmp_path / "pruning.json").read_text())
    assert data == {
        "format": "pyprune-pruning/1",
        "model": "tiny",
        "blocks": [1],
        "mha": [0],
        "ffn": [2],
        "kv_groups": {"3": [0, 2]},
        "neurons": {"0": [3, 5], "3": [12]},
        "pad_to": 8,
        "made_by": "by hand",
    }
    assert Pruning.from_json(tmp_path / "pruning.json") == FULL
    del data["format"]  # older files, and records within other files, name none
    assert data == FULL.to_dict()
    assert Pruning.from_dict(data) == FULL


def test_composition_unites_and_does_not_depend_on_order():
    one = Pruning(model="m", blocks=[1], neurons={0: [1, 2]}, made_by="b")
    other = Pruning(blocks=[1, 2], mha=[0], neurons={0: [2, 3], 3: [1]}, pad_to=8, made_by="a")
    expected = Pruning("m", [1, 2], [0], [], {}, {0: [1, 2, 3], 3: [1]}, 8, "a | b")
    assert one | other == expected
    assert other | one == expected
    assert expected | one == expected


def test_composing_a_block_over_its_neurons_subsumes_them():
    assert Pruning(neurons={1: [0], 2: [0]}) | Pruning(blocks=[1]) == Pruning(blocks=[1], neurons={2: [0]})


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        (Pruning(model="a"), Pruning(model="b"), "model 'a' and 'b'"),
        (Pruning(pad_to=8), Pruning(pad_to=16), "pad_to 8 and 16"),
    ],
)
def test_conflicting_prunings_cannot_be_composed(one, other, named):
    with pytest.raises(InputError, match=named):
        one | other


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"blocks": [-1]}, "blocks names -1"),
        ({"blocks": [2, 2]}, "blocks names 2 twice"),
        ({"blocks": 3}, "blocks 3"),
        ({"blocks": "10,11"}, "blocks '10,11'"),
        ({"blocks": None}, "blocks None"),
        ({"mha": [1.5]}, r"mha 1\.5"),
        ({"ffn": [True]}, "ffn True"),
        ({"ffn": ["1"]}, "ffn '1'"),
        ({"kv_groups": [1]}, r"kv_groups \[1\]"),
        ({"kv_groups": {"a": [1]}}, "key 'a'"),
        ({"kv_groups": {"-1": [1]}}, "key '-1'"),
        ({"neurons": {-1: [1]}}, "neurons names -1"),
        ({"neurons": {"1": [1], "01": [2]}}, "block 1 twice"),
        ({"neurons": {"1": [4, 4]}}, "neurons of block 1 names 4 twice"),
        ({"neurons": {"1": 4}}, "neurons of block 1 4"),
        ({"pad_to": 0}, "pad_to 0"),
        ({"pad_to": "64"}, "pad_to '64'"),
        ({"model": 7}, "model 7"),
        ({"made_by": ["x"]}, "made_by"),
        ({"format": "pyprune-scores/1"}, "format 'pyprune-scores/1'"),
        ({"block": [1]}, "unknown key 'block'"),
        ([1, 2], "list"),
    ],
)
def test_bad_json_is_refused_by_its_value(bad, named, tmp_path):
    path = tmp_path / "pruning.json"
    with pytest.raises(InputError, match=named):
        Pruning.from_dict(bad)
    if bad != {"neurons": {-1: [1]}}:  # JSON keys are strings
        path.write_text(json.dumps(bad))
        with pytest.raises(InputError, match=r"pruning\.json"):
            Pruning.from_json(path)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (Pruning(blocks=[4]), "blocks names block 4; 0 to 3"),
        (Pruning(mha=[9]), "mha names block 9"),
        (Pruning(ffn=[4]), "ffn names block 4"),
        (Pruning(kv_groups={4: [0]}), "kv_groups names block 4"),
        (Pruning(neurons={5: [0]}), "neurons names block 5"),
        (Pruning(kv_groups={1: [3]}), "kv_groups of block 1 names 3; 0 to 2"),
        (Pruning(neurons={1: [13]}), "neurons of block 1 names 13; 0 to 12"),
        (Pruning(blocks=range(4)), "all 4 blocks"),
        (Pruning(mha=range(4), ffn=range(4)), "all 4 blocks"),
        (Pruning(kv_groups={1: range(3)}), "all 3 kv_groups of block 1 .*'mha'"),
        (Pruning(neurons={1: range(13)}), "all 13 neurons of block 1 .*'ffn'"),
    ],
)
def test_check_refuses_what_does_not_fit(bad, named, make_decoder):
    with pytest.raises(InputError, match=named):
        bad.check(make_decoder())


def test_check_takes_every_half_of_one_kind_and_another_models_name(make_decoder):
    Pruning(model="elsewhere", mha=range(4)).check(make_decoder())


@pytest.mark.parametrize(
    ("skip", "sets"),
    [
        (None, (set(), set(), set())),
        ([2, 0], ({0, 2}, set(), set())),
        ({3}, ({3}, set(), set())),
        ((), (set(), set(), set())),
        ({"blocks": [1], "ffn": [0]}, ({1}, set(), {0})),
        ({"mha": [0, 1], "ffn": [1]}, ({1}, {0}, set())),
        (Pruning(mha=[2]), (set(), {2}, set())),
    ],
)
def test_skip_in_every_form(skip, sets):
    assert Pruning.from_skip(skip).skip_sets() == sets


@pytest.mark.parametrize("skip", [3, "3", [1, 1], [-1], {"block": [1]}, {"kv_groups": {0: [1]}}, [True], {"blocks": 1}])
def test_bad_skip_is_refused(skip):
    with pytest.raises(InputError):
        Pruning.from_skip(skip)


@pytest.mark.parametrize("narrow", [Pruning(kv_groups={2: [0]}), Pruning(neurons={2: [0]})])
def test_a_narrowing_is_not_a_skip_mask(narrow):
    with pytest.raises(InputError, match=r"\[2\].*apply"):
        narrow.skip_sets()
