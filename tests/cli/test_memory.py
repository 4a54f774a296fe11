"""`--memory` and `--stream` of the commands that score."""

from __future__ import annotations

import json

import numpy
import pytest

from pyprune import load
from tests import seeds
from tests.cli.command_line import TINY, run

FEW = ("--samples", "2", "--seq-len", "16")


def test_a_limit_changes_nothing_but_the_memory(capsys):
    whole = json.loads(run(capsys, "score", TINY, *FEW, "--json")[1])
    split = json.loads(run(capsys, "score", TINY, *FEW, "--memory", "26MB", "--json")[1])
    assert [row["unit"] for row in split["scores"]] == [row["unit"] for row in whole["scores"]]
    for one, other in zip(split["scores"], whole["scores"], strict=True):
        assert one["score"] == pytest.approx(other["score"], rel=1e-6)


@pytest.mark.parametrize(
    ("given", "told"), [("3XB", "800MB or 2GiB"), ("0MB", "800MB or 2GiB"), ("1MB", "1.0 MB given")]
)
def test_a_limit_that_is_none_or_too_small_is_told(capsys, given: str, told: str):
    code, _, err = run(capsys, "score", TINY, *FEW, "--memory", given)
    assert (code, told in err) == (2, True)


@pytest.mark.parametrize("command", [("score",), ("search", "--depth", "1")])
def test_a_streamed_checkpoint_is_scored_as_one_in_memory(capsys, tmp_path, command):
    load(TINY).save(tmp_path / "model")
    numpy.save(tmp_path / "ids.npy", numpy.random.default_rng(seeds.seed(0)).integers(0, 250, 200))
    words = (*command, str(tmp_path / "model"), *FEW, "--text", str(tmp_path / "ids.npy"), "--json")
    code, streamed, _ = run(capsys, *words, "--stream")
    assert code == 0
    assert json.loads(streamed) == json.loads(run(capsys, *words)[1])


def test_what_cannot_be_streamed_is_told(capsys):
    code, _, err = run(capsys, "score", TINY, *FEW, "--stream")
    assert (code, "cannot be streamed" in err) == (2, True)
