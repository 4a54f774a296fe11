"""`pyprune score` and `pyprune prune`: from scores to checkpoints that load again."""

from __future__ import annotations

import json
import re

import pytest

from pyprune.errors import InputError
from pyprune.scoring.scores import Scores
from tests.cli.command_line import FEW, TINY, run


def test_score_prints_the_order_that_it_writes(capsys, tmp_path):
    path = tmp_path / "scores.json"
    code, out, _ = run(capsys, "score", TINY, *FEW, "--unit", "ffn", "--out", str(path))
    scores = Scores.from_json(path)
    assert code == 0
    assert [("ffn", int(index)) for index in re.findall(r"\bffn (\d)\b", out)] == scores.order()
    assert scores.calibration["source"] == "random token ids"
    assert (scores.calibration["samples"], scores.calibration["seq_len"]) == (2, 8)
    code, out, _ = run(capsys, "score", TINY, *FEW, "--unit", "ffn", "--json")
    assert json.loads(out) == json.loads(path.read_text())


def test_prune_takes_scores_from_a_file_as_if_it_had_just_made_them(capsys, tmp_path):
    path = tmp_path / "scores.json"
    assert run(capsys, "score", TINY, *FEW, "--out", str(path))[0] == 0
    by_file = run(capsys, "prune", TINY, "--depth", "2", "--scores", str(path), "--out", str(tmp_path / "a"), "--json")
    scored = run(capsys, "prune", TINY, *FEW, "--depth", "2", "--out", str(tmp_path / "b"), "--json")
    first, second = (json.loads(done[1]) for done in (by_file, scored))
    assert first["pruning"] == second["pruning"]
    assert first["after"]["blocks"] == 2


def test_prune_keeps_protected_blocks(capsys, tmp_path):
    words = ["prune", TINY, *FEW, "--depth", "1", "--protect", "first=2,last=1", "--out", str(tmp_path / "a"), "--json"]
    assert json.loads(run(capsys, *words)[1])["pruning"]["blocks"] == [2]


@pytest.mark.parametrize("way", [["--blocks", "1,3"], ["--depth", "2"]])
@pytest.mark.parametrize("unit", ["mha", "ffn"])
def test_halves_are_pruned_and_the_checkpoint_loads_with_its_record(way, unit, capsys, tmp_path):
    from pyprune.models import load

    target = tmp_path / "halves"
    code, out, _ = run(capsys, "prune", TINY, *FEW, *way, "--unit", unit, "--out", str(target), "--json")
    assert code == 0
    gone = json.loads(out)["pruning"][unit]
    assert len(gone) == 2
    loaded = load(target)
    assert [block.index for block in loaded.blocks if getattr(block, unit) is None] == gone
    assert loaded.pruning.to_dict()[unit] == gone
    assert json.loads((target / "config.json").read_text())["model_type"] == "pyprune_llama"


@pytest.mark.parametrize("way", [["--depth", "2"], ["--width", "20%"], ["--width", "20%", "--method", "flap"]])
def test_what_no_checkpoint_can_express_is_refused_before_the_slow_part(way, capsys, tmp_path, failing, monkeypatch):
    failing(AssertionError("scoring began"))

    def fail(*_, **__):
        raise AssertionError("narrowing began")

    def refuse(decoder):
        raise InputError("a bias that cannot be saved")

    monkeypatch.setattr("pyprune.pruning.width", fail)
    monkeypatch.setattr("pyprune.models.ragged.checkpoint_config", refuse)
    code, _, err = run(capsys, "prune", TINY, *FEW, *way, "--out", str(tmp_path / "a"))
    assert (code, err) == (2, "pyprune: a bias that cannot be saved\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "made_by"),
    [
        (["flap", "--variant", "WIFN,AL-MM", "--remove-groups", "2"], "width flap WIFN,AL-MM"),
        (["flap", "--align", "4", "--units", "neurons"], "width flap"),
        (["llm-pruner", "--variant", "param_mix,global", "--protect", "0"], "width llm-pruner param_mix,global"),
        (["head-gate"], "width head-gate"),
        (["magnitude-sp"], "width magnitude-sp"),
        (["wanda-sp", "--variant", "faithful"], "width wanda-sp faithful"),
    ],
)
def test_every_width_method_saves_what_loads_again(words, made_by, capsys, tmp_path):
    from pyprune.models import load
    from pyprune.pruning import Pruning

    command = ["prune", TINY, *FEW, "--width", "30%", "--method", *words, "--out", str(tmp_path / "a"), "--json"]
    code, out, err = run(capsys, *command)
    assert (code, err) == (0, "")
    told = json.loads(out)
    loaded = load(tmp_path / "a")
    assert told["after"]["parameters"] == loaded.parameters() < told["before"]["parameters"]
    record = Pruning.from_json(tmp_path / "a" / "pruning.json")
    assert record.made_by == made_by
    assert loaded.pruning.to_dict() == record.to_dict() == told["pruning"]
    if "--align" in words:
        assert not any(block.ffn.width % 4 for block in loaded.blocks)
    if "--protect" in words:
        assert 0 not in record.neurons


def test_pruned_width_is_padded_and_the_checkpoint_loads_with_its_record(capsys, tmp_path):
    from pyprune.models import load

    target = tmp_path / "narrow"
    code, out, _ = run(capsys, "prune", TINY, *FEW, "--width", "20%", "--pad-to", "64", "--out", str(target))
    assert code == 0
    assert "128" in out
    loaded = load(target)
    assert {block.ffn.width for block in loaded.blocks} == {128}
    assert loaded.pruning.pad_to == 64


def test_scores_of_another_unit_than_asked_for_are_refused(capsys, tmp_path):
    path = tmp_path / "scores.json"
    run(capsys, "score", TINY, *FEW, "--unit", "ffn", "--out", str(path))
    words = ["prune", TINY, "--depth", "1", "--unit", "mha", "--scores", str(path), "--out", str(tmp_path / "a")]
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "--unit mha" in err
