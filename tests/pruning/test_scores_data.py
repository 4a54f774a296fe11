"""Scores: the ranking, its JSON, and what cannot be ranked."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyprune.errors
from pyprune.errors import InputError
from pyprune.scoring.scores import Scores

CALIBRATION = {"sha256": "00", "samples": 2, "seq_len": 8, "seed": 1, "source": "demo"}


def block_scores(values, **more):
    units = [("block", index) for index in range(len(values))]
    return Scores("tiny", "ppl", "block", 9.5, units, values, CALIBRATION, **more)


def test_order_is_ascending_and_ties_go_by_index():
    scores = block_scores([4.0, 2.0, 4.0, math.inf, 1.0])
    assert scores.order() == [("block", 4), ("block", 1), ("block", 0), ("block", 2), ("block", 3)]


def test_json_has_the_public_keys(tmp_path):
    block_scores([3.0, 2.0]).to_json(tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text()) == {
        "format": "pyprune-scores/1",
        "model": "tiny",
        "criterion": "ppl",
        "unit": "block",
        "baseline": 9.5,
        "scores": [
            {"unit": "block", "index": 0, "score": 3.0},
            {"unit": "block", "index": 1, "score": 2.0},
        ],
        "order": [["block", 1], ["block", 0]],
        "calibration": CALIBRATION,
    }


def test_json_round_trip_keeps_every_bit_and_infinity(tmp_path):
    scores = block_scores([math.pi, math.inf, 1 / 3], parameters=100, unit_parameters=[10, 20, 30])
    scores.to_json(tmp_path / "scores.json")
    assert Scores.from_json(tmp_path / "scores.json") == scores
    # Strict JSON: no bare Infinity that other readers refuse.
    json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)


def test_numpy_scalars_are_written(tmp_path):
    units = [("mha", np.int64(1)), ("ffn", 0)]
    scores = Scores("tiny", "ppl", "sublayers", None, units, [np.float32(0.5), 0.25], {}, np.int64(9), [np.int64(1), 2])
    scores.to_json(tmp_path / "scores.json")
    assert Scores.from_json(tmp_path / "scores.json").order() == [("ffn", 0), ("mha", 1)]


GOOD = block_scores([3.0, 2.0]).to_dict()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"scores": []}, "no units"),
        ({"scores": 3}, "scores 3"),
        ({"scores": [{"unit": "block", "index": 0}]}, "score"),
        ({"scores": [{"unit": "head", "index": 0, "score": 1.0}], "order": [["head", 0]]}, "head"),
        ({"scores": [{"unit": "block", "index": -1, "score": 1.0}]}, "-1"),
        ({"scores": [{"unit": "block", "index": 0.5, "score": 1.0}]}, r"0\.5"),
        ({"scores": [{"unit": "block", "index": 0, "score": "low"}]}, "'low'"),
        ({"scores": [{"unit": "block", "index": 0, "score": True}]}, "True"),
        ({"scores": [{"unit": "block", "index": 0, "score": None}]}, "None"),
        ({"scores": [{"unit": "block", "index": 1, "score": 1.0}] * 2}, "block 1 is scored twice"),
        ({"scores": [{"unit": "mha", "index": 1, "score": 1.0}]}, "mha 1 among scores of unit 'block'"),
        ({"order": [["block", 0], ["block", 1]]}, "order"),
        ({"model": None}, "model None"),
        ({"criterion": ""}, "criterion ''"),
        ({"unit": 1}, "unit 1"),
        ({"baseline": "x"}, "baseline 'x'"),
        ({"calibration": []}, "calibration"),
        ({"unit_parameters": [1]}, "1 unit_parameters for 2 units"),
        ({"unit_parameters": [1, -2]}, "-2"),
        ({"parameters": 1.5}, r"1\.5"),
        ({"format": "pyprune-scores/2"}, "format 'pyprune-scores/2': pyprune-scores/1 is expected"),
    ],
)
def test_bad_json_is_refused_by_its_value(change, named, tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(InputError, match=rf"scores\.json: .*{named}"):
        Scores.from_json(path)


@pytest.mark.parametrize("key", ["model", "criterion", "unit", "scores"])
def test_a_missing_key_is_named(key):
    with pytest.raises(InputError, match=f"'{key}' is missing"):
        Scores.from_dict({name: value for name, value in GOOD.items() if name != key})


@pytest.mark.parametrize("text", ["[1, 2]", "not json", ""])
def test_a_file_without_scores_is_named(tmp_path, text):
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"scores\.json"):
        Scores.from_json(path)


def test_nan_and_unequal_lengths_cannot_be_ranked():
    with pytest.raises(InputError, match="block 1 nan"):
        block_scores([1.0, math.nan])
    with pytest.raises(InputError, match="1 values for 2 units"):
        Scores("tiny", "ppl", "block", None, [("block", 0), ("block", 1)], [1.0])


@pytest.mark.parametrize("module", ["scoring.scores", "models.pruning", "models.original_sizes"])
def test_the_data_needs_no_torch(module):
    # The packages' own __init__ may well import torch; what is probed is the data module and all below it.
    code = """
import sys, types
from pathlib import Path
root = Path(sys.argv[1])
sys.modules["torch"] = None
for name, path in (("pyprune", root), ("pyprune.scoring", root / "scoring"), ("pyprune.models", root / "models")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(path)]
__import__("pyprune." + sys.argv[2])
print("imported")
"""
    root = Path(pyprune.errors.__file__).parent
    result = subprocess.run([sys.executable, "-c", code, str(root), module], capture_output=True, text=True)
    assert result.stdout == "imported\n", result.stderr
