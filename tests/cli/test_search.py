"""`pyprune search`, and `prune --search`."""

from __future__ import annotations

import json
import os

import pytest

from pyprune import Pruning, SearchResult, load, search
from pyprune.scoring.calibration import calibration
from tests.cli.command_line import run

SHAPE = "shape:hidden=24,blocks=6,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=97"
FEW = ("--samples", "3", "--seq-len", "12")


@pytest.fixture(scope="module")
def decoder():
    return load(SHAPE)


@pytest.fixture(scope="module")
def samples(decoder):
    return calibration(decoder, None, 3, 12, 0).input_ids


def test_a_search_is_told_and_kept(capsys, tmp_path, decoder, samples):
    out, removed = tmp_path / "found.json", tmp_path / "pruning.json"
    words = ("search", SHAPE, *FEW, "--depth", "3", "--unit", "mha+ffn", "--protect", "first=1")
    code, told, _ = run(capsys, *words, "--out", str(out), "--pruning-out", str(removed), "--resume")
    expected = search(decoder, samples, "greedy", count=3, unit="mha+ffn", protect="first=1")
    found = SearchResult.from_json(out)
    assert code == 0
    assert found.order == expected.order
    assert Pruning.from_json(removed) == found.pruning()
    for place, (kind, index) in enumerate(found.order, start=1):
        assert any(line.split()[:3] == [str(place), kind, str(index)] for line in told.splitlines())
    assert (
        f"a forward pass for each candidate would take {found.naive.blocks:,.0f} and {found.naive.heads:,.0f}" in told
    )
    assert sorted(os.listdir(tmp_path)) == ["found.json", "pruning.json"]  # the journal is gone


@pytest.mark.parametrize(
    "words",
    [("--method", "one-shot", "--criterion", "magnitude", "--power", "2"), ("--method", "window", "--depth", "40%")],
)
def test_every_method_answers_in_json(capsys, decoder, samples, words: tuple[str, ...]):
    code, told, _ = run(capsys, "search", SHAPE, *FEW, "--depth", "2", *words, "--json")
    found = SearchResult.from_dict(json.loads(told))
    assert code == 0
    assert found.method == words[1]
    given = {"criterion": "magnitude", "power": 2, "count": 2} if "--power" in words else {"ratio": 0.4}
    assert found.order == search(decoder, samples, words[1], **given).order


@pytest.mark.parametrize("method", ["greedy", "window"])
def test_prune_removes_what_a_search_finds(capsys, tmp_path, decoder, samples, method: str):
    words = ("--depth", "3", "--search", method, "--protect", "last=1", "--out", str(tmp_path / "model"), "--resume")
    code, _, err = run(capsys, "prune", SHAPE, *FEW, *words)
    assert (code, err) == (0, "")
    expected = search(decoder, samples, method, count=3, protect="last=1").pruning()
    assert load(str(tmp_path / "model")).pruning == expected
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("search", SHAPE, "--depth", "6"), "all 6 units would be removed"),
        (("search", SHAPE, "--depth", "9"), "count 9: 1 to 6 units"),
        (("search", SHAPE, "--depth", "2", "--resume"), "--resume: needs --out; the journal is written beside it"),
        (("search", SHAPE, "--depth", "2", "--criterion", "taylor"), "method greedy accepts ppl"),
        (("search", SHAPE, "--depth", "2", "--method", "window", "--unit", "ffn"), "a window is of blocks"),
        (
            ("prune", SHAPE, "--blocks", "2", "--search", "greedy", "--out", "new"),
            "--search greedy: needs --depth",
        ),
        (("prune", SHAPE, "--blocks", "2", "--resume", "--out", "new"), "--resume: needs --depth"),
        (("score", SHAPE, "--criterion", "magnitude", "--resume", "--out", "new"), "magnitude keeps no journal; ppl"),
        (("score", SHAPE, "--resume"), "--resume: needs --out; the journal is written beside it"),
    ],
)
def test_what_does_not_fit_together_is_told(capsys, tmp_path, monkeypatch, words: tuple[str, ...], told: str):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *words)
    assert (code, told in err) == (2, True), err
    assert os.listdir(tmp_path) == []
