"""`pyprune retrain`."""

from __future__ import annotations

import csv
import json
import os

import numpy
import pytest
import torch

from pyprune import Pruning, apply, cli, load, retrain
from pyprune.commands.retrain import NUMBERS, chosen_settings
from pyprune.retraining.settings import Settings
from pyprune.retraining.train import Retrained
from tests import seeds
from tests.cli.command_line import run
from tests.evaluation.conftest import save_model

SHAPE = "shape:hidden=24,blocks=4,heads=4,kv_heads=2,head_dim=6,ffn=31,vocab=61"
FEW = ("--cutoff", "12", "--steps", "2", "--batch", "4", "--micro-batch", "2", "--learning-rate", "0.01")


@pytest.fixture
def pruned(tmp_path):
    apply(load(SHAPE), Pruning(blocks=(1,))).save(tmp_path / "pruned")
    return str(tmp_path / "pruned")


@pytest.fixture
def ids(tmp_path):
    ids = torch.randint(0, 61, (360,), generator=seeds.generator(5))
    numpy.save(tmp_path / "ids.npy", ids.numpy())
    return str(tmp_path / "ids.npy")


def test_it_trains_saves_and_tells(capsys, tmp_path, pruned, ids):
    out, adapters = tmp_path / "out", tmp_path / "adapters"
    words = ("--text", ids, "--out", out, "--adapters", adapters, "--resume", "--json", *FEW)
    code, text, err = run(capsys, "retrain", pruned, *words)
    assert (code, err) == (0, "")
    told = json.loads(text)
    assert told["trained_steps"] == 2
    assert told["trained_tokens"] == 2 * 4 * 12
    assert told["precision"] == "fp32"  # the one of the model
    expected = retrain(pruned, text=ids, cutoff=12, steps=2, batch=4, micro_batch=2, learning_rate=0.01)
    saved = load(str(out))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(saved.tensors(), expected.tensors(), strict=True))
    assert saved.pruning == Pruning(model=SHAPE, blocks=(1,))
    rows = list(csv.DictReader((out / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "retraining.json").read_text())["text"] == "ids.npy"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(os.listdir(adapters))
    assert not (tmp_path / "out.journal").exists()


def test_a_run_that_ended_between_adapters_and_model_resumes(capsys, tmp_path, pruned, ids, monkeypatch):
    class Killed(BaseException):
        """Stands for kill -9: nothing catches it."""

    def killed(*_):
        raise Killed

    out, adapters = tmp_path / "out", tmp_path / "adapters"
    words = ("retrain", pruned, "--text", ids, "--out", out, "--adapters", adapters, "--resume", *FEW)
    monkeypatch.setattr(Retrained, "save", killed)
    with pytest.raises(Killed):
        run(capsys, *words)
    monkeypatch.undo()
    kept = (adapters / "adapter_model.safetensors").read_bytes()
    (adapters / "adapter_model.safetensors").write_bytes(kept[:-1] + b"x")
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "holds those of another training" in err
    (adapters / "adapter_model.safetensors").write_bytes(kept)
    assert run(capsys, *words)[0] == 0
    assert load(out).pruning is not None
    assert (adapters / "adapter_model.safetensors").read_bytes() == kept
    assert not (tmp_path / "out.journal").exists()
    code, _, err = run(capsys, "retrain", pruned, "--text", ids, "--out", tmp_path / "two", *words[6:])
    assert code == 2
    assert "adapters: is a directory that is not empty" in err  # without a state nobody knows whose they are


@pytest.mark.slow
def test_a_table_tells_the_same(capsys, tmp_path, pruned, ids):
    code, text, _ = run(capsys, "retrain", pruned, "--text", ids, "--out", tmp_path / "out", "--held-out", "3", *FEW)
    assert code == 0
    assert "held-out loss after" in text
    assert "curve.csv" in text


def test_the_model_is_trained_and_saved_in_the_dtype(capsys, tmp_path, pruned, ids):
    words = ("retrain", pruned, "--text", ids, "--out", tmp_path / "out", "--dtype", "bf16", "--json", *FEW)
    code, text, _ = run(capsys, *words)
    assert code == 0
    assert json.loads(text)["precision"] == "bf16"
    assert load(tmp_path / "out").dtype == torch.bfloat16


def test_instructions_without_a_reply_within_the_cutoff_are_counted(capsys, tmp_path):
    model = str(save_model(tmp_path / "model"))
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "a" * 300, "output": "b"}] * 2
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("retrain", model, "--instructions", tmp_path / "rows.jsonl", "--steps", "1", "--batch", "1",
             "--micro-batch", "1")  # fmt: skip
    code, text, _ = run(capsys, *words, "--cutoff", "200", "--out", tmp_path / "out", "--json")
    assert code == 0
    told = json.loads(text)
    assert (told["samples"], told["dropped_samples"]) == (2, 2)
    saved = json.loads((tmp_path / "out" / "retraining.json").read_text())
    assert (saved["samples"], saved["dropped_samples"]) == (2, 2)
    code, text, _ = run(capsys, *words, "--cutoff", "200", "--out", tmp_path / "two")
    assert code == 0
    assert "Dropped: 2 of 4 samples, with no reply within --cutoff" in text
    code, _, err = run(capsys, *words, "--cutoff", "20", "--out", tmp_path / "three")
    assert code == 2
    assert "no reply begins within 20 tokens (cutoff), so that all samples, 4, were dropped" in err
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "one of the arguments --text --instructions is required"),
        (("--text", "a", "--instructions", "b"), "not allowed with"),
        (("--text", "missing.txt"), "missing.txt"),
        (("--instructions", "missing.jsonl"), "missing.jsonl"),
        (("--text", "demo:boolq"), "demo:boolq"),
        (("--text", "IDS", "--batch", "6"), "a divisor of batch, 6"),
        (("--text", "IDS", "--steps", "2", "--epochs", "1"), "one of the two"),
        (("--text", "IDS", "--steps", "0"), "0"),
        (("--text", "IDS", "--lora-dropout", "1"), "below 1"),
        (("--text", "IDS", "--eval-text", "IDS"), "is also the training text"),
        (("--text", "demo:lambada", "--calibrated", "3"), "10x128"),
        (("--text", "IDS", "--calibrated", "10x128"), "--calibrated 10x128: belongs to --text demo:lambada"),
        (("--instructions", "IDS", "--calibrated", "10x128"), "--calibrated 10x128: belongs to --text demo:lambada"),
        (("--text", "IDS", "--full", "--lora-rank", "4"), "lora_rank 4: full training has no LoRA"),
        (("--text", "IDS", "--full", "--lora-alpha", "4"), "lora_alpha 4.0: full training has no LoRA"),
        (("--text", "IDS", "--full", "--lora-dropout", "0"), "lora_dropout 0.0: full training has no LoRA"),
        (("--text", "IDS", "--distill-top-k", "3"), "belongs to --distill"),
        (("--instructions", "IDS", "--field", "a"), "belongs to --text"),
        (("--text", "IDS", "--adapters", "OUT"), "a directory apart from"),
        (("--text", "IDS", "--adapters", "OUT/adapters"), "a directory apart from"),
        (("--text", "IDS", "--adapters", "other", "--full"), "full training has none"),
    ],
)
def test_bad_words_are_told_before_anything_is_loaded(capsys, tmp_path, ids, words, message):
    words = [ids if word == "IDS" else word.replace("OUT", str(tmp_path / "out")) for word in words]
    code, _, err = run(capsys, "retrain", "/no/such/model", *words, "--out", tmp_path / "out")
    assert code == 2
    assert message in err
    assert "/no/such/model" not in err


def test_what_is_missing_is_named_with_its_command(capsys, tmp_path, monkeypatch, ids):
    monkeypatch.setattr("pyprune.retraining.adapters.importlib.util.find_spec", lambda name: None)
    code, _, err = run(capsys, "retrain", "/no/such/model", "--text", ids, "--out", tmp_path / "out")
    assert code == 2
    assert "pip install pyprune[retrain]" in err


def test_the_defaults_in_the_help_are_the_settings(capsys):
    options = cli.build_parser().parse_args(["retrain", "m", "--text", "t", "--out", "o"])
    assert Settings(**chosen_settings(options)) == Settings()
    stated = {name: about.rpartition("default: ")[2].rstrip(")") for name, _, _, about in NUMBERS}
    for name in ("cutoff", "batch", "micro_batch", "learning_rate", "warmup_steps", "lora_rank", "lora_alpha", "seed",
                 "lora_dropout"):  # fmt: skip
        assert float(stated[name]) == getattr(Settings(), name)
