"""Iterative pruning with a training that the tests bring: what each round removes, scores and keeps; interruptions."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys

import numpy
import pytest
import torch

import pyprune
from pyprune import InputError
from pyprune.retraining import rounds
from pyprune.retraining.iterate import iterate
from pyprune.retraining.iterated import Iterated, csv_text
from pyprune.scoring.calibration.sources import Tokens
from pyprune.study.iterate_report import cells, figure
from tests import seeds

SIZES = "shape:hidden=24,blocks=6,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=97"


@pytest.fixture
def model():
    return pyprune.load(SIZES, dtype=torch.float32)


def ids(number: int):
    return torch.randint(0, 97, (4, 9), generator=seeds.generator(number))


def shaken(pruned, steps, seed, state, progress):
    """A training that stands for one: other weights, which follow from the steps and the seed alone."""
    draw = torch.Generator().manual_seed(1000 * steps + seed)
    progress(steps, steps)
    return pruned.map(lambda t: t * (1 + 0.02 * torch.randn(t.shape, generator=draw)))


def run(model, **options):
    settings = {"held_out": ids(2), "count": 3, "steps": 5, "train": shaken, **options}
    return iterate(model, ids(1), **settings)


def same(one: Iterated, other: Iterated) -> bool:
    tensors = zip(one.decoder.tensors(), other.decoder.tensors(), strict=True)
    return one.to_dict() == other.to_dict() and all(a == b and torch.equal(x, y) for (a, x), (b, y) in tensors)


def test_each_round_scores_what_the_last_training_left(model):
    before = [tensor.clone() for _, tensor in model.tensors()]
    result = run(model)
    decoder, gone = model, ()
    for number, step in enumerate(result.rounds, start=1):
        scores = pyprune.score(decoder, ids(1))
        assert step.removed == scores.order()[0]
        assert step.score == min(scores.values)
        pruned = pyprune.apply(decoder, pyprune.depth(scores, count=1))
        gone = tuple(sorted((*gone, step.removed[1])))
        assert pruned.pruning.blocks == gone  # the original's indices
        assert step.perplexity == pyprune.perplexity(pruned, ids(2))
        decoder = shaken(pruned, 5, number, None, lambda done, total: None)
        assert step.retrained == pyprune.perplexity(decoder, ids(2))
        assert step.parameters == decoder.parameters()
    assert [block.index for block in result.decoder.blocks] == [i for i in range(6) if i not in gone]
    assert result.decoder.pruning.blocks == gone
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(decoder.tensors(), result.decoder.tensors(), strict=True))
    assert all(torch.equal(x, y) for x, (_, y) in zip(before, model.tensors(), strict=True))


def test_the_curves_beside_it_are_of_the_unpruned_model(model):
    result = run(model)
    assert result.baseline == pytest.approx(pyprune.perplexity(model, ids(2)), rel=1e-6)
    for method, curve in (("one-shot", result.one_shot), ("greedy", result.greedy)):
        found = pyprune.search(model, ids(1), method, count=3)
        assert [step.removed for step in curve] == found.order
        for length, step in enumerate(curve, start=1):
            pruned = pyprune.apply(model, found.pruning(length))
            assert step.perplexity == pytest.approx(pyprune.perplexity(pruned, ids(2)), rel=1e-5)
    assert result.one_shot_retrained is None
    first = result.rounds[0]
    assert first.removed == result.greedy[0].removed == result.one_shot[0].removed


def test_one_training_at_once_has_the_steps_of_all_rounds(model):
    seen = []

    def train(pruned, steps, seed, state, progress):
        seen.append((len(pruned.blocks), steps, seed))
        return shaken(pruned, steps, seed, state, progress)

    result = run(model, train=train, one_shot_retrained=True, seed=7)
    assert seen == [(5, 5, 8), (4, 5, 9), (3, 5, 10), (3, 15, 7)]
    pruned = pyprune.apply(model, pyprune.Pruning(blocks=tuple(step.removed[1] for step in result.one_shot)))
    trained = shaken(pruned, 15, 7, None, lambda done, total: None)
    assert result.one_shot_retrained == pyprune.perplexity(trained, ids(2))


@pytest.mark.parametrize("unit", ["mha", "mha+ffn"])
def test_sublayers_and_ratios(model, unit):
    result = run(model, count=None, ratio=0.3, unit=unit, protect="first=1")
    assert len(result.rounds) == len(pyprune.search(model, ids(1), ratio=0.3, unit=unit, protect="first=1").order)
    assert {step.removed[1] for step in result.rounds}.isdisjoint({0})
    assert 0.15 < 1 - result.decoder.parameters() / model.parameters() < 0.45


def test_a_result_round_trips_and_is_shown(model, tmp_path):
    result = run(model, one_shot_retrained=True, out=tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "iterate.json").read_text())
    assert Iterated.from_dict(stored).to_dict() == result.to_dict() == stored
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "iterate.csv").read_text())))
    assert [line["removed"] for line in lines] == ["0", "1", "2", "3"]
    assert float(lines[3]["iterative_retrained"]) == result.rounds[2].retrained
    assert float(lines[0]["greedy"]) == result.baseline
    header, rows = cells(result)
    assert len(rows) == 4
    assert {len(row) for row in rows} == {len(header)}
    assert figure(result)[1:4] == b"PNG"
    loaded = pyprune.load(tmp_path / "out")
    assert [block.index for block in loaded.blocks] == [block.index for block in result.decoder.blocks]
    assert loaded.pruning == result.decoder.pruning


def test_curves_without_training_can_be_left_out(model, tmp_path, monkeypatch):
    complete = run(model)
    monkeypatch.setattr(sys.modules["pyprune.retraining.iterate"], "search", None)
    result = run(model, untrained=False, out=tmp_path / "out")
    assert result.rounds == complete.rounds
    assert result.baseline == pytest.approx(complete.baseline, rel=1e-6)
    assert (result.one_shot, result.greedy) == ((), ())
    assert Iterated.from_dict(result.to_dict()).rounds == result.rounds
    lines = list(csv.DictReader(io.StringIO(csv_text(result))))
    assert [line["iterative_retrained"] for line in lines] == [
        line["iterative_retrained"] for line in csv.DictReader(io.StringIO(csv_text(complete)))
    ]
    assert {line[name] for line in lines for name in ("one_shot_unit", "one_shot", "greedy_unit", "greedy")} == {""}
    header, rows = cells(result)
    assert header == ["gone", "removed", "pruned", "retrained", "parameters"]
    assert {len(row) for row in rows} == {5}
    assert figure(result).startswith(b"\x89PNG")
    for options, word in (
        ({"count": None, "ratio": 0.4}, "ratio"),
        ({"one_shot_retrained": True}, "one_shot_retrained"),
    ):
        with pytest.raises(InputError, match=f"untrained False: leaves out the search that {word} needs"):
            run(model, untrained=False, **options)


def test_an_infinite_perplexity_is_kept_and_drawn(model):
    data = run(model, count=1).to_dict()
    data["greedy"][0]["perplexity"] = "inf"
    result = Iterated.from_dict(data)
    assert math.isinf(result.greedy[0].perplexity)
    assert result.to_dict() == data
    assert figure(result)[1:4] == b"PNG"
    assert "inf" in csv_text(result)


class Ended(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.slow
def test_it_resumes_from_every_write_as_if_nothing_had_been(model, tmp_path, monkeypatch):
    options = {"count": 2, "one_shot_retrained": True}
    expected = run(model, **options, out=tmp_path / "whole", resume=True)
    assert os.listdir(tmp_path) == ["whole"]
    assert same(expected, run(model, **options))  # a journal changes nothing
    write, saved = rounds.write_json, type(model).save
    events = []

    def counted(act, *arguments):
        events.append(act)
        if len(events) == fails_at[0]:
            raise Ended
        act(*arguments)
        if len(events) == -fails_at[0]:
            raise Ended

    monkeypatch.setattr(rounds, "write_json", lambda *a: counted(write, *a))
    monkeypatch.setattr(type(model), "save", lambda *a: counted(saved, *a))
    fails_at = [0]
    run(model, **options, out=tmp_path / "count", resume=True)
    total = len(events)
    assert total >= 8  # searches, for each of two rounds its choice, model and result, and the training at once
    for place in range(1, total + 1):
        folder = tmp_path / f"{place}"
        out = folder / "out"
        for fails_at[0] in (place, -place):
            events.clear()
            with pytest.raises(Ended):
                run(model, **options, out=out, resume=True)
            fails_at[0] = 0
            assert same(expected, run(model, **options, out=out, resume=True))
            assert os.listdir(folder) == ["out"]
            shutil.rmtree(out)


def test_finished_rounds_are_not_done_again(model, tmp_path):
    trained = []

    def failing(pruned, steps, seed, state, progress):
        trained.append(seed)
        if len(trained) == 3:
            raise Ended
        return shaken(pruned, steps, seed, state, progress)

    with pytest.raises(Ended):
        run(model, train=failing, out=tmp_path / "out", resume=True)
    assert trained == [1, 2, 3]
    run(model, train=failing, out=tmp_path / "out", resume=True)
    assert trained == [1, 2, 3, 3]


def test_the_training_at_once_keeps_its_state_until_its_result_is_kept(model, tmp_path, monkeypatch):
    write, begun = rounds.write_json, []

    def train(pruned, steps, seed, state, progress):
        begun.append(state.exists())
        state.write_text("trained")
        return shaken(pruned, steps, seed, state, progress)

    def ends(path, data):
        if "one-shot retrained" in data["parts"]:
            raise Ended
        write(path, data)

    options = {"count": 1, "train": train, "one_shot_retrained": True, "resume": tmp_path / "kept"}
    monkeypatch.setattr(rounds, "write_json", ends)
    with pytest.raises(Ended):
        run(model, **options)
    monkeypatch.undo()
    run(model, **options)
    assert begun == [False, False, True]
    assert sorted(os.listdir(tmp_path / "kept")) == ["journal.json", "round-1"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"steps": 6}, "steps"), ({"seed": 1}, "seed"), ({"count": 2}, "count"), ({"unit": "ffn"}, "unit")],
)
def test_a_journal_of_other_work_is_refused(model, tmp_path, changes, word):
    def failing(pruned, *_):
        raise Ended

    failing.__qualname__ = "shaken"
    with pytest.raises(Ended):
        run(model, train=failing, out=tmp_path / "out", resume=True)
    with pytest.raises(InputError, match=f"out.journal: holds a run with {word}"):
        run(model, out=tmp_path / "out", resume=True, **changes)
    other = model.map(lambda t: t * 1.5)
    with pytest.raises(InputError, match="holds a run with weights"):
        run(other, out=tmp_path / "out", resume=True)


@pytest.mark.parametrize("form", ["tensor", "source", "file"])
def test_a_journal_of_other_training_data_is_refused(model, tmp_path, monkeypatch, form):
    words = torch.randint(0, 96, (4000,), generator=seeds.generator(3))
    other = words.clone()
    other[2000] += 1  # which numpy and torch leave out of what they print

    def given(ids):
        if form == "file":
            numpy.save(tmp_path / "words.npy", ids.numpy())
            return tmp_path / "words.npy"
        return ids if form == "tensor" else Tokens("words", [ids.numpy()])

    def ended(*_, **__):
        raise Ended

    monkeypatch.setitem(iterate.__globals__, "retrain_with_report", ended)
    options = {"train": None, "cutoff": 8, "out": tmp_path / "out", "resume": True}
    with pytest.raises(Ended):
        run(model, text=given(words), **options)
    with pytest.raises(Ended):
        run(model, text=given(words), **options)
    with pytest.raises(InputError, match=r"out.journal: holds a run with samples"):
        run(model, text=given(other), **options)


def test_bad_input_is_named_before_any_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["pyprune.retraining.iterate"], "search", None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for words, options in (
        ("steps: 0", {"steps": 0}),
        ("one of text and instructions", {"train": None}),
        ("one of text and instructions", {"train": None, "text": "a", "instructions": "b"}),
        ("learning_rate -1", {"train": None, "text": "a", "learning_rate": -1}),
        ("'rank'", {"train": None, "text": "a", "rank": 3}),
        ("'lora_rank': of retrain", {"lora_rank": 3}),
        ("but train", {"distill": True}),
        ("loss 'kl'", {"train": None, "text": "a", "distill": True, "distill_loss": "kl"}),
        ("no model to distill from", {"train": None, "text": "a", "temperature": 2.0}),
        ("not empty", {"out": tmp_path / "full"}),
        ("resume: needs out", {"resume": True}),
        ("97", {"held_out": torch.full((2, 5), 97)}),
        ("count 7: 1 to 6 units", {"count": 7}),
        ("all 6 units would be removed", {"count": 6}),
        ("protect 6: a block from 0 to 5", {"protect": (6,)}),
        ("exactly one of them", {"ratio": 0.2}),
        ("ratio 0.01: nearest to removing no unit", {"count": None, "ratio": 0.01}),
        ("train_from 3: 0 to 2", {"train": None, "text": "a", "train_from": 3}),
        ("top_k 97: 1 to 96", {"train": None, "text": "a", "distill": True, "distill_top_k": 97}),
        ("'s context", {"train": None, "text": "a", "cutoff": model.max_positions + 1}),
        ("window of 400", {"train": None, "text": ids(3), "cutoff": 400}),
    ):
        with pytest.raises(InputError, match=words):
            run(model, **options)
    assert os.listdir(tmp_path) == ["full"]


def test_a_training_that_loses_the_record_is_refused(model):
    with pytest.raises(InputError, match="record"):
        run(model, train=lambda pruned, *_: pyprune.Decoder(**{**vars(pruned), "pruning": None}))


def test_a_folder_that_is_no_journal_is_refused(model, tmp_path):
    (tmp_path / "out.journal").mkdir()
    (tmp_path / "out.journal" / "letter").touch()
    with pytest.raises(InputError, match="not a journal"):
        run(model, out=tmp_path / "out", resume=True)


def test_what_a_kill_left_half_written_or_half_removed_is_no_obstacle(model, tmp_path, monkeypatch):
    (tmp_path / "out.journal").mkdir()
    (tmp_path / "out.journal" / ".journal.json.ab12.part").write_text("{")  # the first write of all
    run(model, count=1, out=tmp_path / "out", resume=True)
    assert os.listdir(tmp_path) == ["out"]
    shutil.rmtree(tmp_path / "out")
    remove, ended = shutil.rmtree, []

    def ends(path, **options):
        if path.name.startswith(".out.journal.") and not ended:
            ended.append(path)
            (path / "journal.json").unlink()
            raise Ended
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", ends)
    with pytest.raises(Ended):
        run(model, count=1, out=tmp_path / "out", resume=True)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "out")
    run(model, count=1, out=tmp_path / "out", resume=True)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "kills"),
    [("shaken", 2), *(pytest.param(*case, marks=pytest.mark.full)
                      for case in (("shaken", 20), ("retrain", 4), ("retrain", 20)))],
)  # fmt: skip
def test_killed_at_random_it_ends_the_same(tmp_path, kills, training):
    words = ["-m", "tests.retraining.killed_iterate", str(tmp_path), str(kills), str(seeds.seed()), training]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["kills"] == kills
    assert sorted(os.listdir(tmp_path)) == ["killed", "whole"]
    for name in ("iterate.json", "model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
