"""`--criterion ppl-after-repair`, and `prune --search greedy --repair METHOD --repair-each`."""

from __future__ import annotations

import json
import os

import pytest
import torch

import pyprune.commands.prune as prune_command
from pyprune import Scores, depth, load, score, search_with_repair
from pyprune.scoring.calibration import calibration, set_apart
from pyprune.study.depth_choice import depth_choices
from tests.cli.command_line import run

SHAPE = "shape:hidden=24,blocks=6,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=97"
EACH = ("prune", "--depth", "1", "--search", "greedy", "--repair-each")
FEW = ("--samples", "4", "--seq-len", "12", "--repair-samples", "16")


def windows(decoder):
    scored, fitted = set_apart(calibration(decoder, None, 20, 12, 0), 4, 0)
    return scored, fitted.input_ids


@pytest.mark.parametrize("form", ["linear", "mean-update"])
def test_score_fits_on_other_windows_of_the_same_draw(capsys, tmp_path, form: str):
    decoder, out = load(SHAPE), str(tmp_path / "scores.json")
    words = ("--criterion", "ppl-after-repair", "--form", form, "--unit", "mha", "--resume", "--out", out)
    code, text, err = run(capsys, "score", SHAPE, *FEW, *words)
    assert (code, err) == (0, "")
    assert "ppl-after-repair" in text
    scored, fit_ids = windows(decoder)
    expected = score(
        decoder, scored.input_ids, "ppl-after-repair", "mha", form=form, fit_ids=fit_ids, calibration=scored.fingerprint
    )
    assert Scores.from_json(out) == expected
    assert os.listdir(tmp_path) == ["scores.json"]


def test_prune_and_search_go_by_it(capsys, tmp_path):
    decoder = load(SHAPE)
    scored, fit_ids = windows(decoder)
    order = score(decoder, scored.input_ids, "ppl-after-repair", fit_ids=fit_ids).order()
    words = (*FEW, "--depth", "2", "--criterion", "ppl-after-repair", "--json")
    code, text, _ = run(capsys, "prune", SHAPE, *words, "--out", str(tmp_path / "out"))
    assert code == 0
    assert json.loads(text)["pruning"]["blocks"] == sorted(index for _, index in order[:2])
    code, text, _ = run(capsys, "search", SHAPE, *words, "--method", "one-shot")
    assert code == 0
    assert json.loads(text)["order"] == [list(unit) for unit in order[:2]]


def test_a_comparison_ranks_by_it_on_every_second_window():
    decoder = load(SHAPE)
    windows_ = calibration(decoder, None, 6, 12, 0)
    (choice,) = depth_choices(["ppl-after-repair"], protect="last=1")
    prunings, record = choice.prunings(decoder, {"0.2": 0.2}, windows_)
    expected = score(decoder, windows_.input_ids[1::2], "ppl-after-repair", fit_ids=windows_.input_ids[::2])
    assert [row["score"] for row in record["scores"]] == expected.values
    assert prunings["0.2"].blocks == depth(expected, decoder, ratio=0.2, protect="last=1").blocks


def test_prune_repairs_after_each_removal_and_saves_the_repaired_model(capsys, tmp_path):
    decoder, out = load(SHAPE), tmp_path / "out"
    words = ("--depth", "2", "--search", "greedy", "--repair", "linear", "--repair-each", "--resume", "--json")
    code, text, err = run(capsys, "prune", SHAPE, *FEW, *words, "--out", str(out))
    assert (code, err) == (0, "")
    scored, fit_ids = windows(decoder)
    expected = search_with_repair(decoder, scored.input_ids, fit_ids, "linear", count=2)
    told, model = json.loads(text), load(str(out))
    assert told["pruning"]["blocks"] == list(expected.pruning().blocks)
    assert told["search"]["order"] == [list(unit) for unit in expected.search.order]
    assert told["search"]["repair"] == told["repair"]["method"] == "linear"
    pairs = zip(model.tensors(), expected.decoder.tensors(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)
    assert os.listdir(tmp_path) == ["out"]


def test_padding_comes_after_the_last_repair(capsys, tmp_path):
    words = ("--depth", "1", "--search", "greedy", "--repair", "refit-all", "--repair-each", "--pad-to", "8")
    code, text, _ = run(capsys, "prune", SHAPE, *FEW, *words, "--out", str(tmp_path / "out"))
    assert code == 0
    assert "held-out perplexity, repaired" in text
    assert {block.ffn.width for block in load(str(tmp_path / "out")).blocks} == {40}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("score", "--form", "linear"), "form: 'linear' given, but criterion ppl takes"),
        (("score", "--repair-samples", "9"), "--repair-samples 9: needs --repair of prune or --criterion"),
        (("score", "--criterion", "ppl-after-repair", "--form", "x"), "--form"),
        (("score", "--criterion", "ppl-after-repair", "--repair-samples", "0"), "--repair-samples"),
        (("prune", "--depth", "1", "--repair-each"), "--repair-each: needs both --search greedy and --repair"),
        (
            ("prune", "--depth", "1", "--repair", "linear", "--repair-each"),
            "--repair-each: needs both --search greedy and --repair",
        ),
        (("prune", "--depth", "1", "--repair-samples", "9"), "--repair-samples 9: needs --repair or"),
        ((*EACH, "--repair", "refit", "--criterion", "last"), "--criterion last: with --repair-each, ppl or"),
        ((*EACH, "--repair", "stat"), "--repair stat: repairs heads and neurons, but --repair-each removes blocks"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_is_loaded(capsys, tmp_path, words, message: str):
    command, *rest = words
    out = ("--out", str(tmp_path / "out")) if command == "prune" else ()
    code, text, error = run(capsys, command, "/no/such/model", "--text", "demo:boolq", *rest, *out)
    assert (code, text) == (2, "")
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("amount", "method", "message"),
    [
        (("--depth", "2"), "stat", "method stat: is for removed heads and neurons"),
        (("--width", "20%"), "linear", "method linear: is for removed blocks and sublayers"),
    ],
)
def test_a_repair_of_the_wrong_kind_is_refused_before_the_scoring(
    capsys, tmp_path, monkeypatch, amount, method, message: str
):
    def fail(*arguments, **options):
        raise AssertionError("scored first")

    monkeypatch.setattr(prune_command, "measured_scores", fail)
    monkeypatch.setattr(prune_command, "measured_narrowing", fail)
    out = ("--out", str(tmp_path / "out"))
    code, text, error = run(capsys, "prune", SHAPE, *amount, "--repair", method, "--repair-samples", "16", *out)
    assert (code, text) == (2, "")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_scores_that_are_made_take_no_windows_to_fit_on(capsys, tmp_path):
    score(load(SHAPE), criterion="first").to_json(tmp_path / "scores.json")
    code, _, error = run(capsys, "score", str(tmp_path / "scores.json"), "--repair-samples", "9")
    assert code == 2
    assert "--repair-samples 9: needs a model to score" in error
