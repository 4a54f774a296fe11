"""--criterion, its options and --protect in score and prune."""

from __future__ import annotations

import json

import pytest

from pyprune import load, score
from pyprune.cli import build_parser
from pyprune.scoring.criteria import CRITERIA
from pyprune.scoring.scores import Scores
from tests.cli.command_line import FEW, run

TINY = "shape:hidden=16,blocks=4,heads=2,kv_heads=1,head_dim=8,ffn=20,vocab=40"


def option(command: str, name: str):
    actions = build_parser()._subparsers._group_actions[0].choices[command]._actions
    return next(action for action in actions if name in action.option_strings)


@pytest.mark.parametrize("command", ["score", "prune"])
def test_help_names_every_criterion_and_every_option_of_one(command: str):
    named = option(command, "--criterion").help.partition(" (default")[0]
    assert [name.partition(" ")[0] for name in named.split(", ")] == list(CRITERIA)
    for name, criterion in CRITERIA.items():
        for key, accepted in criterion.options.items():
            if accepted is not None and key not in ("memory", "seed"):
                choices = option(command, f"--{key}").choices
                assert choices is None or set(accepted) == set(choices), (name, key)


@pytest.mark.parametrize("name", CRITERIA)
def test_score_prints_the_scores_of_every_criterion(capsys, name: str):
    code, out, _ = run(capsys, "score", TINY, *FEW, "--criterion", name, "--unit", "mha+ffn", "--json")
    assert code == 0
    found = Scores.from_dict(json.loads(out))
    assert (found.criterion, found.unit, len(found.units)) == (name, "mha+ffn", 8)
    assert bool(found.calibration) == (CRITERIA[name].needs != "nothing")


def test_options_of_a_criterion_reach_it(capsys):
    words = ["--criterion", "magnitude", "--power", "2", "--within", "max", "--across", "mean"]
    code, out, _ = run(capsys, "score", TINY, *words, "--json")
    assert code == 0
    expected = score(load(TINY), criterion="magnitude", power=2, within="max", across="mean")
    assert Scores.from_dict(json.loads(out)) == expected
    code, out, _ = run(capsys, "score", TINY, "--criterion", "random", "--seed", "3", "--json")
    assert Scores.from_dict(json.loads(out)) == score(load(TINY), criterion="random", seed=3)


def test_the_table_marks_what_is_protected_and_puts_it_last(capsys):
    code, out, _ = run(capsys, "score", TINY, "--criterion", "first", "--protect", "first=1,last=1")
    assert code == 0
    lines = [line.split() for line in out.splitlines() if "block " in line]
    assert [line[1:3] for line in lines] == [["block", n] for n in "1203"]
    assert [line[-1] == "protected" for line in lines] == [False, False, True, True]


def test_prune_takes_what_the_criterion_ranks_first_and_keeps_what_is_protected(capsys, tmp_path):
    out = tmp_path / "small"
    words = ["--depth", "2", "--criterion", "last", "--protect", "last=1", "--out", str(out), "--json"]
    code, text, _ = run(capsys, "prune", TINY, *words)
    assert code == 0
    assert json.loads(text)["pruning"]["blocks"] == [1, 2]
    assert json.loads(text)["pruning"]["made_by"] == "depth last block"


def test_protection_in_a_file_of_scores_holds_when_it_is_pruned_by(capsys, tmp_path):
    path, out = str(tmp_path / "scores.json"), str(tmp_path / "small")
    assert run(capsys, "score", TINY, "--criterion", "first", "--protect", "first=2", "--out", path)[0] == 0
    code, text, _ = run(capsys, "prune", TINY, "--depth", "1", "--scores", path, "--out", out, "--json")
    assert code == 0
    assert json.loads(text)["pruning"]["blocks"] == [2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", TINY, "--criterion", "magic"], "criterion: 'magic' given; ppl, first-order-ppl"),
        (["score", TINY, "--criterion", "taylor", "--power", "2"], "power: 2 given, but criterion taylor takes"),
        (["score", TINY, "--tokens", "last"], "tokens: 'last' given, but criterion ppl takes"),
        (["score", TINY, "--criterion", "first", "--text", "x"], "--text x: criterion first reads no text"),
        (["score", TINY, "--criterion", "magnitude", "--power", "3"], "power: 3 given; criterion magnitude accepts 1"),
        (["score", TINY, "--criterion", "angular", "--variant", "x"], "variant: 'x' given"),
        (["score", TINY, "--criterion", "every", "--every", "0"], "--every"),
        (["score", TINY, "--protect", "middle=2"], "protect 'middle=2'"),
        (["score", TINY, "--criterion", "magnitude", "--field", "x"], "--field x: criterion magnitude reads no text"),
        (
            ["prune", TINY, "--blocks", "1", "--text", "x", "--out", "OUT"],
            "--text x: the calibration text is read with",
        ),
        (
            ["prune", TINY, "--blocks", "1", "--memory", "1GB", "--out", "OUT"],
            "belongs to scoring, searches and repairs",
        ),
        (
            ["prune", TINY, "--depth", "1", "--search", "greedy", "--criterion", "magnitude", "--out", "OUT"],
            "criterion: 'magnitude' given; method greedy accepts ppl",
        ),
        (["prune", TINY, "--blocks", "1", "--criterion", "last", "--out", "OUT"], "--criterion last: needs --depth"),
        (["prune", TINY, "--width", "20%", "--tokens", "last", "--out", "OUT"], "--tokens last: needs --depth"),
        (
            ["prune", TINY, "--blocks", "1", "--unit", "mha+ffn", "--out", "OUT"],
            "--unit mha+ffn: with --blocks, one of block",
        ),
        (["prune", TINY, "--depth", "1", "--criterion", "magic", "--out", "OUT"], "criterion: 'magic'"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(capsys, tmp_path, words: list[str], message: str):
    out = tmp_path / "out"
    code, text, error = run(capsys, *[str(out) if word == "OUT" else word for word in words])
    assert (code, text) == (2, "")
    assert error.startswith(f"pyprune: {message}") or message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_scores_that_are_already_made_leave_no_criterion_to_choose(capsys, tmp_path):
    path = tmp_path / "scores.json"
    score(load(TINY), criterion="first").to_json(path)
    words = ["prune", TINY, "--depth", "1", "--scores", str(path), "--criterion", "last", "--out", str(tmp_path / "a")]
    code, _, error = run(capsys, *words)
    assert code == 2
    assert "--criterion last: does not go with --scores" in error
