"""pyprune score, search and prune on a saved directory of a family that pyprune does not know."""

from __future__ import annotations

import json

import numpy
import pytest
from transformers import AutoModelForCausalLM

from pyprune import score
from tests.cli.command_line import run
from tests.families.models import ids, naive_perplexity, random_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("any")


@pytest.fixture(scope="module")
def directory(folder):
    random_model("gemma3_text").save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def windows(folder):
    numpy.save(folder / "ids.npy", ids(4, 8).numpy())
    return ["--text", folder / "ids.npy", "--samples", "4", "--seq-len", "8"]


def test_score_then_prune_by_the_scores(capsys, folder, directory, windows):
    code, out, _ = run(capsys, "score", directory, *windows, "--out", folder / "scores.json", "--json")
    assert code == 0
    scores = json.loads(out)
    expected = score(random_model("gemma3_text"), ids(4, 8))
    assert scores["model"] == "model"
    assert [row["score"] for row in scores["scores"]] == pytest.approx(expected.values, rel=1e-6)

    smaller = folder / "smaller"
    code, out, _ = run(
        capsys, "prune", directory, "--depth", "1", "--scores", folder / "scores.json", "--out", smaller, "--json"
    )
    assert code == 0
    report = json.loads(out)
    assert report["pruning"]["blocks"] == [expected.order()[0][1]]
    assert (report["before"]["blocks"], report["after"]["blocks"]) == (4, 3)
    plain = AutoModelForCausalLM.from_pretrained(smaller).eval()
    assert naive_perplexity(plain, ids(4, 8)) == pytest.approx(min(expected.values), rel=1e-5)
    assert {"config.json", "model.safetensors", "pruning.json", "original_config.json"} <= {
        file.name for file in smaller.iterdir()
    }

    code, out, _ = run(capsys, "score", smaller, *windows)
    assert code == 0
    assert f"{min(expected.values):.6g}" in out


def test_prune_scores_searches_and_names_blocks(capsys, folder, directory, windows):
    code, out, _ = run(capsys, "prune", directory, "--depth", "20%", *windows, "--out", folder / "share")
    assert code == 0
    assert "parameters" in out
    assert "MB" in out
    search = ["--depth", "2", "--search", "greedy", *windows]
    assert run(capsys, "prune", directory, *search, "--out", folder / "greedy")[0] == 0
    assert len(AutoModelForCausalLM.from_pretrained(folder / "greedy").model.layers) == 2
    assert run(capsys, "prune", directory, "--blocks", "0,3", "--out", folder / "named")[0] == 0
    code, out, _ = run(capsys, "search", directory, "--depth", "2", "--method", "window", *windows, "--json")
    assert code == 0
    assert len(json.loads(out)["steps"]) == 1
    for criterion in ("magnitude", "random"):
        assert run(capsys, "score", directory, "--criterion", criterion)[0] == 0
    for criterion in ("block-influence", "taylor"):
        assert run(capsys, "score", directory, "--criterion", criterion, *windows)[0] == 0


def test_an_interrupted_score_goes_on(capsys, folder, directory, windows):
    out = folder / "resumed.json"
    assert run(capsys, "score", directory, *windows, "--out", out, "--resume")[0] == 0
    assert out.exists()
    assert not (folder / "resumed.json.journal").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prune", "--width", "20%"], "--width 20%: only whole blocks can be removed from model"),
        (["prune", "--depth", "1", "--pad-to", "8"], "pad_to of model: only whole blocks can be removed"),
        (["prune", "--depth", "1", "--unit", "mha"], "unit 'mha': model runs through its own layers"),
        (["prune", "--blocks", "9"], "blocks names block 9; 0 to 3 of model are accepted"),
        (["score", "--unit", "mha+ffn"], "unit 'mha': model runs through its own layers"),
        (["score", "--stream"], "cannot be streamed"),
    ],
)
def test_bad_input_is_one_line(capsys, folder, directory, windows, words, message):
    command, *rest = words
    out = ["--out", folder / "never"] if command == "prune" else []
    given = windows if command == "score" or "--depth" in rest else []
    code, _, err = run(capsys, command, directory, *rest, *given, *out)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (folder / "never").exists()
