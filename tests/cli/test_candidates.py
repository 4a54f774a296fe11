"""`pyprune score --candidates`, `--measure` and `--labels`, and what `plan` says of them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from pyprune import Pruning, Scores, load, score
from pyprune.scoring.calibration import calibration
from pyprune.scoring.planning import plan_scoring
from tests.cli.command_line import run

TINY = ["shape:tiny", "--samples", "2", "--seq-len", "8"]
PRUNINGS = {
    "bias": Pruning(compensation={"blocks.0.o.bias": torch.ones(64)}),
    "last": Pruning(blocks=[3]),
    "narrow": Pruning(neurons={1: [0, 1, 2]}),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hidden = load("shape:tiny").hidden_size
    prunings = PRUNINGS | {"bias": Pruning(compensation={"blocks.0.o.bias": torch.ones(hidden)})}
    for name in ("bias", "last"):
        (tmp_path / "library" / name).mkdir(parents=True)
        prunings[name].to_json(f"library/{name}/pruning.json")
    prunings["narrow"].to_json("library/narrow.json")
    return prunings


def test_a_directory_of_prunings_is_scored_and_kept(capsys, folder):
    code, out, _ = run(capsys, "score", *TINY, "--candidates", "library", "--measure", "kl,ppl", "--out", "s.json")
    assert code == 0
    assert "the lowest kl first" in " ".join(out.split())
    decoder = load("shape:tiny")
    ids = calibration(decoder, samples=2, seq_len=8).input_ids
    expected = score(decoder, ids, candidates=folder, measure=["kl", "ppl"])
    written = Scores.from_json("s.json")
    assert written.values == pytest.approx(expected.values, rel=1e-5)
    assert written.names() == ["bias", "last", "narrow"]
    assert [line.split()[1] for line in out.splitlines() if line.strip()[:1] in {"1", "2", "3"}] == [
        written.names()[index] for _, index in written.order()
    ]
    code, shown, _ = run(capsys, "score", "s.json")
    assert (code, shown) == (0, out)
    code, out, _ = run(capsys, "score", *TINY, "--measure", "cosine", "--unit", "ffn", "--json")
    assert (code, json.loads(out)["criterion"]) == (0, "cosine")


def test_answers_of_a_file_are_the_samples(capsys, folder):
    ids = torch.randint(0, load("shape:tiny").vocab_size, (3, 7), generator=torch.Generator().manual_seed(1))
    labels = torch.where(torch.arange(7) > 4, ids, -100).contiguous()
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, 0] = False
    save_file({"input_ids": ids, "labels": labels, "attention_mask": mask}, "answers.safetensors")
    words = ["--labels", "answers.safetensors", "--measure", "task-loss,ppl", "--candidates", "library", "--json"]
    code, out, err = run(capsys, "score", "shape:tiny", *words)
    assert (code, err) == (0, "")
    expected = score(
        load("shape:tiny"), ids, attention_mask=mask, labels=labels, candidates=folder, measure=["task-loss", "ppl"]
    )
    assert [row["score"] for row in json.loads(out)["scores"]] == pytest.approx(expected.values, rel=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--candidates", "nowhere"], "nowhere: a directory of prunings is expected"),
        (["--candidates", "library/last/pruning.json"], "a directory of prunings is expected"),
        (["--candidates", "library", "--unit", "ffn"], "--unit ffn: does not go with --candidates"),
        (["--candidates", "library", "--protect", "1"], "--protect 1: does not go with --candidates"),
        (["--candidates", "library", "--plot", "p.png"], "--plot p.png: does not go with --candidates"),
        (["--candidates", "library", "--criterion", "taylor"], "--candidates: needs --criterion ppl, not taylor"),
        (["--measure", "best"], "measure: 'best' given"),
        (["--measure", "kl", "--criterion", "magnitude"], "--measure: needs --criterion ppl"),
        (["--measure", "task-loss"], "--labels FILE and --measure task-loss are expected"),
        (["--labels", "no.safetensors"], "--labels FILE and --measure task-loss are expected"),
        (["--labels", "no.safetensors", "--measure", "task-loss"], "no.safetensors"),
        (
            ["--labels", "no.safetensors", "--measure", "task-loss", "--seed", "3"],
            "--seed 3: does not go with --labels",
        ),
        (["--labels", "library/narrow.json", "--measure", "task-loss"], "a .safetensors file"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_model_is_loaded(capsys, folder, monkeypatch, words, message):
    monkeypatch.setattr("pyprune.models.load_any.load_any", None)
    code, out, err = run(capsys, "score", *(TINY[:1] if "--labels" in words else TINY), *words)
    assert (code, out) == (2, "")
    assert message in err


def test_scores_in_a_file_take_no_candidates(capsys, folder):
    run(capsys, "score", *TINY, "--candidates", "library", "--out", "s.json")
    for words, message in (
        (["s.json", "--candidates", "library"], "has scores already"),
        (["s.json", "--samples", "3"], "--samples 3: needs a model to score; s.json has scores already"),
        (["s.json", "--stream"], "--stream: needs a model to score"),
        (["s.json", "--plot", "p.png"], "scores of candidates"),
        (["s.json", "--against", "s.json"], "scores of candidates"),
    ):
        code, _, err = run(capsys, "score", *words)
        assert code == 2
        assert message in err


def test_the_memory_of_scoring_is_planned_from_sizes(capsys):
    words = ["shape:llama-7b", "--memory", "--candidates", "64", "--dtype", "fp16"]
    code, out, _ = run(capsys, "plan", *words, "--json", "--samples", "4", "--measure", "kl")
    planned = json.loads(out)["bytes"]
    states, narrowed = 65 * 4 * 128 * 4096 * 4, 4 * 11008 * 4096 * 2  # an FFN, of which one matrix is there twice
    assert code == 0
    assert states + narrowed < planned < states + narrowed + 400e6
    few = plan_scoring(load("shape:tiny"), 3, 40, 64)
    more = plan_scoring(load("shape:tiny"), 6, 40, 64)
    assert more.bytes - few.bytes == 3 * 40 * 64 * load("shape:tiny").hidden_size * 4
    for refused in (["--len", "100"], ["--batch", "1,16"], ["--skip", "3"]):
        code, _, err = run(capsys, "plan", *words, *refused)
        assert (code, f"{' '.join(refused)}: plans an engine; does not go with --candidates" in err) == (2, True)
    for refused in (["--measure", "kl"], ["--samples", "4"]):
        code, _, err = run(capsys, "plan", "shape:tiny", "--memory", *refused)
        assert (code, f"{' '.join(refused)}: needs --candidates" in err) == (2, True)
