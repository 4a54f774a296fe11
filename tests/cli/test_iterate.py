"""`pyprune iterate`: what it writes and prints, how it resumes, and what it refuses."""

from __future__ import annotations

import json
import os

import numpy
import pytest

from pyprune import InputError, cli, load
from pyprune.commands import distillation as options
from pyprune.commands.iterate import _calibrated
from pyprune.retraining.clean_texts import DRAWN, Drawn
from pyprune.retraining.iterate import iterate
from pyprune.retraining.objectives.distillation import KINDS
from pyprune.retraining.settings import FIRST_CUT
from tests import seeds
from tests.cli.command_line import run

SHAPE = "shape:hidden=24,blocks=5,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=97"
FEW = (
    "--count", "2", "--samples", "4", "--seq-len", "8", "--eval-tokens", "32", "--retrain-steps", "2", "--batch", "2",
    "--micro-batch", "2", "--cutoff", "8", "--train-from", "first-cut",
)  # fmt: skip


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "words.npy"
    numpy.save(path, numpy.random.default_rng(seeds.seed()).integers(0, 97, 400))
    return path


def test_it_writes_a_checkpoint_and_the_curves(capsys, tmp_path, text):
    pytest.importorskip("peft")
    out = tmp_path / "out"
    words = ("iterate", SHAPE, *FEW, "--train-text", text, "--out", out, "--resume")
    code, shown, err = run(capsys, *words, "--distill", "--distill-loss", "reverse-kl", "--distill-top-k", "9")
    assert (code, err) == (0, "")
    assert "retrained" in shown
    assert sorted(os.listdir(tmp_path)) == ["out", "words.npy"]
    names = set(os.listdir(out))
    assert {"iterate.json", "iterate.csv", "iterate.png", "pruning.json", "config.json", "model.safetensors"} <= names
    result = json.loads((out / "iterate.json").read_text())
    gone = {step["removed"][1] for step in result["rounds"]}
    assert [block.index for block in load(out).blocks] == [index for index in range(5) if index not in gone]


def test_what_quotes_the_held_out_text_is_kept_from_training(capsys, tmp_path, text, monkeypatch):
    pytest.importorskip("peft")
    held_out = tmp_path / "held-out.npy"
    numpy.save(held_out, numpy.random.default_rng(seeds.seed(1)).integers(0, 97, 400))
    seen = []

    def noted(function, name):
        return lambda *words, **options: seen.append(options[name]) or function(*words, **options)

    for function, name in (("training_samples", "held_out"), ("retrain_with_report", "eval_text")):
        monkeypatch.setitem(iterate.__globals__, function, noted(iterate.__globals__[function], name))
    words = ("iterate", SHAPE, *FEW, "--train-text", text, "--eval-text", held_out, "--out", tmp_path / "out")
    assert run(capsys, *words)[0] == 0
    assert [source.name for source in seen] == ["held-out.npy"] * 3  # checked first, then in each of two rounds


@pytest.mark.parametrize("named", [(), ("--text", "demo:lambada")])
def test_what_it_calibrates_on_is_kept_from_training(named):
    words = ("iterate", "m", "--count", "1", "--train-text", "demo:passages", "--out", "o", "--samples", "7",
             "--packing", "documents", "--bos", "each")  # fmt: skip
    chosen = cli.build_parser().parse_args([*words, *named])
    assert _calibrated(chosen)["calibrated"] == (*DRAWN, Drawn(7, 128, 0, "documents", "each"))
    other = cli.build_parser().parse_args([*words, "--text", "a.txt"])
    assert _calibrated(other) == {}


@pytest.mark.slow
def test_a_teacher_changes_the_rounds_and_not_the_searches(capsys, tmp_path, text):
    pytest.importorskip("peft")
    words = ("iterate", SHAPE, *FEW, "--train-text", text, "--json", "--out")
    told = []
    for more in ((tmp_path / "alone",), (tmp_path / "taught", "--distill")):
        code, shown, _ = run(capsys, *words, *more)
        assert code == 0
        told.append(json.loads(shown))
    assert told[0]["greedy"] == told[1]["greedy"]
    assert told[0]["rounds"] != told[1]["rounds"]


def test_what_cannot_be_had_is_refused_before_loading(capsys, tmp_path, text, monkeypatch):
    monkeypatch.setattr("pyprune.commands.iterate.loaded", None)
    base = ("iterate", SHAPE, "--out", tmp_path / "out")
    ways = (*base, "--count", "1", "--train-text", text)
    for words, what in (
        (base, "required"),
        ((*base, "--count", "1"), "required"),
        ((*ways, "--temperature", "2"), "--temperature: belongs to --distill"),
        ((*ways, "--distill", "--distill-weight", "2"), "'2'"),
        ((*ways, "--train-from", "cut"), "first-cut"),
        ((*ways, "--retrain-steps", "0"), "'0'"),
        ((*base, "--count", "6", "--train-text", text), "count 6: 1 to 5 units"),
        ((*base, "--ratio", "1%", "--train-text", text), "ratio 0.01: nearest to removing no unit"),
        ((*ways, "--protect", "5"), "protect 5: a block from 0 to 4"),
        ((*ways, "--train-from", "4"), "train_from 4: 0 to 3"),
        ((*ways, "--distill", "--distill-top-k", "97"), "top_k 97: 1 to 96"),
        ((*ways, "--eval-text", text), "also the held-out text"),
        ((*ways, "--text", text), "also the calibration text"),
        ((*base, "--count", "1", "--train-text", "nowhere.txt"), "nowhere.txt"),
        ((*ways, "--full", "--lora-rank", "4"), "lora_rank 4: full training has no LoRA"),
        ((*ways, "--device", "cuda:99"), "cuda:99"),
        (("iterate", SHAPE, "--out", text, "--count", "1", "--train-text", text), "is a file"),
    ):
        code, _, err = run(capsys, *words)
        assert code == 2
        assert what in err
        assert err.count("\n") == 1


def test_the_model_is_loaded_onto_the_device(capsys, tmp_path, text, monkeypatch):
    def loaded(model, dtype, device):
        raise InputError(f"{device} was chosen")

    monkeypatch.setattr("pyprune.commands.iterate.loaded", loaded)
    monkeypatch.setattr("pyprune.commands.iterate.chosen_device", lambda options: options.device)
    words = ("iterate", SHAPE, *FEW, "--train-text", text, "--out", tmp_path / "out", "--device", "cuda:0")
    assert "cuda:0 was chosen" in run(capsys, *words)[2]


def test_the_options_are_those_of_the_package():
    assert options.LOSSES == KINDS
    assert options.FIRST_CUT == FIRST_CUT
