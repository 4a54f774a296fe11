"""`pyprune score --against` and `--plot`, and `pyprune report`: from files, without a model."""

from __future__ import annotations

import json

import pytest

from pyprune.cli import build_parser
from pyprune.scoring.scores import Scores
from tests.cli.command_line import run

TINY = ["shape:tiny", "--samples", "2", "--seq-len", "8"]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Scores a.json and b.json of the tiny shape's four blocks, in the current directory."""
    monkeypatch.chdir(tmp_path)
    units = [("block", index) for index in range(4)]
    for name, values in (("a", [9, 1, 2, 8]), ("b", [9, 2, 1, 8])):
        Scores("shape:tiny", "ppl", "block", 1.0, units, values, {"source": f"{name}.txt"}).to_json(f"{name}.json")


def test_two_files_of_scores_are_compared(capsys, files):
    code, out, _ = run(capsys, "score", "a.json", "--against", "b.json", "--count", "1")
    assert code == 0
    words = " ".join(out.split())
    assert "Spearman's rank correlation 0.800 Kendall's tau-b 0.667 removed under A 1 removed under B 2" in words
    assert "0% of the removed units; 25% expected by chance" in words
    code, out, _ = run(capsys, "score", "a.json", "--against", "b.json", "--count", "2", "--json", "--plot", "p.png")
    assert (code, json.loads(out)["both"]) == (0, [["block", 1], ["block", 2]])
    with open("p.png", "rb") as figure:
        assert figure.read(8) == PNG


def test_a_models_fresh_scores_are_compared_and_kept(capsys, files):
    code, out, _ = run(capsys, "score", *TINY, "--against", "b.json", "--count", "1", "--json", "--out", "fresh.json")
    found, fresh = json.loads(out), Scores.from_json("fresh.json")
    assert code == 0
    assert found["units"] == 4
    assert found["dropped"] == {"a": [list(fresh.order()[0])], "b": [["block", 2]]}
    assert found["a"]["calibration"] == fresh.calibration


def test_scores_are_shown_and_drawn_from_a_file(capsys, files):
    code, out, _ = run(capsys, "score", "a.json", "--plot", "bars.png", "--count", "2", "--protect", "1")
    assert code == 0
    assert out.index("block 1") < out.index("block 2") < out.index("block 3")
    code, out, _ = run(capsys, "score", "a.json", "--json")
    assert json.loads(out) == Scores.from_json("a.json").to_dict()


def test_reports_say_what_they_wrote(capsys, files):
    code, out, _ = run(capsys, "report", "a.json", "b.json", "--count", "1", "--out", "heat.png", "--json")
    assert code == 0
    assert json.loads(out)["written"][0].endswith("heat.png")
    code, out, _ = run(capsys, "report", "a.json", "--out", "new")
    assert (code, [line.rsplit("/")[-1] for line in out.splitlines()]) == (0, ["index.html", "bars-a.png"])


BAD_INPUT = [
    (["score", "a.json", "--against", "none.json"], "none.json"),
    (["score", "none.json"], "none.json"),
    (
        ["score", *TINY, "--unit", "mha", "--count", "1", "--against", "a.json"],
        "its scores are of unit block; --unit block is expected",
    ),
    (["score", "a.json", "--count", "1"], "--count 1: needs --against or --plot"),
    (["score", *TINY, "--ratio", "20%"], "--ratio 0.2: needs --against or --plot"),
    (["score", "a.json", "--protect", "1"], "--protect 1: needs a model to score"),
    (["score", "a.json", "--text", "a.txt"], "--text a.txt: needs a model to score; a.json has scores already"),
    (["score", "a.json", "--criterion", "taylor"], "--criterion taylor: needs a model to score"),
    (["score", "a.json", "--resume"], "--resume: needs a model to score"),
    (["score", "a.json", "--out", "c.json"], "--out c.json: needs a model to score"),
    (["score", "a.json", "--against", "b.json", "--count", "9"], "1 to 4 units"),
    (["score", "a.json", "--against", "b.json", "--count", "1", "--ratio", "20%"], "not allowed with"),
    (["score", "a.json", "--against", "b.json", "--ratio", "3"], "ratio '3': a share of the parameters"),
    (["score", *TINY, "--against", "b.json"], "a ratio needs the decoder, or give a count"),
    (["score", "a.json", "--plot", "bars.svg"], "bars.svg: figures are written as PNG"),
    (["score", *TINY, "--packing", "documents"], "packing documents: shape:tiny gets random token ids"),
    (["score", *TINY, "--text", "demo:novels"], "demo:novels: no demonstration text"),
    (["score", *TINY, "--bos", "yes"], "'yes'"),
    (["report", "a.json"], "--out"),
    (["report", "a.json", "--out", "b.json"], "b.json: is a file"),
]


@pytest.mark.parametrize(("words", "told"), BAD_INPUT, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_input_is_one_line_and_code_2(capsys, files, words, told):
    code, out, err = run(capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err


def test_the_rules_in_the_help_are_those_that_calibration_takes():
    from pyprune.scoring.calibration import BOS_RULES, PACKINGS

    actions = build_parser()._subparsers._group_actions[0].choices["score"]._actions
    choices = {action.dest: tuple(action.choices) for action in actions if action.choices}
    assert (choices["packing"], choices["bos"]) == (PACKINGS, BOS_RULES)
