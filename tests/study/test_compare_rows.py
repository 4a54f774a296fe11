"""Further rows and columns: depth criteria, checkpoints, accuracy, what memory has no room for; and resuming."""

from __future__ import annotations

import json

import pytest

import pyprune
from pyprune.errors import InputError
from pyprune.files import write_json
from pyprune.models import load
from pyprune.models.pruning import Pruning
from pyprune.study import room, rows, timing
from pyprune.study.compare import compare
from pyprune.study.evaluations import accuracy
from pyprune.study.protocols import Protocol
from pyprune.study.report import render, terminal
from pyprune.study.table import table

BRIEF = Protocol("brief", 4, (2,), warmups=0, runs=1, evaluation_tokens=64, evaluation_window=32)
SHAPE = "shape:hidden=32,blocks=8,heads=4,kv_heads=2,head_dim=8,ffn=96,vocab=64"
OPTIONS = {"protocol": BRIEF, "dtype": "float32", "samples": 2, "seq_len": 16, "pad_multiple": 8, "batches": [1]}


def screen(results) -> str:
    from rich.console import Console

    console = Console(width=100)
    with console.capture() as captured:
        for part in terminal(results):
            console.print(part)
    return captured.get()


@pytest.fixture
def checkpoint(tmp_path):
    pyprune.apply(load(SHAPE), Pruning(blocks=[3, 4])).save(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.fixture
def answered(monkeypatch):
    """Accuracies that depend on the model's size alone, in place of lm-eval's."""
    calls = []

    def evaluate_tasks(model, tokenizer, tasks, *, limit=None, data=None, progress=None, resume=None):
        calls.append((len(model.blocks), tuple(tasks), limit))
        share = len(model.blocks) / 10
        figures = {"acc": share, "acc_stderr": 0.02, "acc_norm": share / 2, "acc_norm_stderr": 0.01}
        return {task: {**figures, "documents": limit} for task in tasks}

    monkeypatch.setattr(accuracy, "evaluate_tasks", evaluate_tasks)
    monkeypatch.setattr(accuracy, "require_tasks", lambda *_, **__: None)
    monkeypatch.setattr(accuracy.Accuracy, "needs", frozenset())
    return calls


@pytest.mark.slow
def test_depth_criteria_checkpoints_and_tasks_are_rows_and_columns(checkpoint, answered, tmp_path):
    results = compare(
        SHAPE, depth_criteria=["ppl", "magnitude+"], checkpoints={"mine": checkpoint}, tasks=["boolq", "hellaswag"],
        limit=7, out=tmp_path / "report", **OPTIONS,
    ).results  # fmt: skip
    by_name = {row["name"]: row for row in results["rows"]}
    assert list(by_name) == [
        "original", "depth ppl 20%", "depth magnitude+ 20%", "wanda-sp 20%", "wanda-sp 20%, padded", "mine",
    ]  # fmt: skip
    # The "+" keeps the first four and the last two of eight blocks.
    assert set(by_name["depth magnitude+ 20%"]["pruning"]["blocks"]) <= {4, 5}
    assert results["scores"]["criterion"] == "ppl"
    assert results["other_scores"]["depth magnitude+"]["criterion"] == "magnitude"
    mine = by_name["mine"]
    assert (mine["source"], mine["pruning"]["blocks"], mine["blocks"]) == ("mine", [3, 4], 6)
    assert mine["bytes"] == 4 * mine["parameters"]
    # acc of BoolQ and acc_norm of HellaSwag, as the paper mixes them.
    line = next(line for line in table(results) if line["row"] == "mine")
    assert (line["boolq_accuracy"], line["hellaswag_accuracy"]) == (0.6, 0.3)
    assert line["accuracy"] == pytest.approx(0.45)
    assert len(answered) == len(by_name)
    assert "--tasks boolq,hellaswag --limit 7" in results["command"]
    assert "--with mine=mine" in results["command"]
    text, page = screen(results), (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "60.0 ±2.0" in text
    assert "Accuracy by task" in page
    assert "mine (mine) has" in page
    assert "wanda-sp 20% has the highest mean accuracy over 2 tasks, 60.0 %" in page
    assert max(len(line) for line in text.splitlines()) <= 100
    again = json.loads((tmp_path / "report" / "results.json").read_text("utf-8"))
    assert table(again) == table(results)


def test_a_checkpoint_of_another_vocabulary_is_refused_before_scoring(tmp_path, monkeypatch):
    monkeypatch.setattr("pyprune.study.compare.choose_prunings", None)
    with pytest.raises(InputError, match="--with other: a vocabulary of 65; the 64 of"):
        compare(SHAPE, checkpoints={"other": SHAPE.replace("vocab=64", "vocab=65")}, **OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("search", ["greedy", "window"])
def test_a_search_chooses_the_depth_row(search):
    results = compare(SHAPE, ratios=["30%"], search=search, **OPTIONS).results
    removed = next(row["pruning"]["blocks"] for row in results["rows"] if row["method"] == "depth")
    order = results["scores"]["searches"]["30%"]["order"]
    assert sorted(index for _, index in order) == removed


def test_every_pruned_row_has_its_own_name_model_and_record():
    decoder = load(SHAPE)
    depth, width = Pruning(blocks=[3, 4]), Pruning(neurons={block: range(60) for block in range(8)})
    padded = width | Pruning(pad_to=32)
    made = rows.make_rows(decoder, {"20%": rows.RatioPrunings({"depth": depth}, {"flap": (width, padded)})})
    assert [(row.name, row.method, row.ratio, row.pruning) for row in made] == [
        ("original", "original", None, None),
        ("depth 20%", "depth", "20%", depth.to_dict()),
        ("flap 20%", "flap", "20%", width.to_dict()),
        ("flap 20%, padded", "flap padded", "20%", {"as": "flap 20%", "pad_to": 32}),
    ]
    blocks = [[block.index for block in row.decoder.blocks] for row in made]
    assert blocks == [list(range(8)), [0, 1, 2, 5, 6, 7], list(range(8)), list(range(8))]
    assert [row.decoder.parameters() for row in made] == [
        decoder.parameters(), *(pyprune.apply(decoder, pruning).parameters() for pruning in (depth, width, padded))
    ]  # fmt: skip
    assert all(row.shortage is None for row in made)


@pytest.mark.slow
def test_a_row_without_room_says_so_and_the_others_are_measured(monkeypatch, tmp_path, checkpoint):
    admit = room.Room.admit

    def short(self, decoder, new_weights=0, keeps_cache=True):
        refused = new_weights and len(decoder.blocks) == 8  # the width rows, which are copies
        late = not new_weights and keeps_cache and self._batch == 3 and len(decoder.blocks) == 8
        return room.Shortage(3 * 2**30, 2 * 2**30, 2**30) if refused or late else admit(
            self, decoder, new_weights, keeps_cache
        )  # fmt: skip

    monkeypatch.setattr(rows.Room, "admit", short)
    results = compare(
        SHAPE, checkpoints={"mine": checkpoint}, out=tmp_path / "report", **{**OPTIONS, "batches": [1, 3]}
    ).results
    by_name = {row["name"]: row for row in results["rows"]}
    assert by_name["wanda-sp 20%"]["oom"]["planned_bytes"] == 3 * 2**30
    assert "ppl" not in by_name["wanda-sp 20%"]
    assert by_name["mine"]["ppl"] > 1
    timed = {(entry["row"], entry["engine"], entry["batch"]) for entry in results["timings"]}
    missing = {(entry["row"], entry["engine"], entry["batch"]) for entry in results["oom"]}
    assert len(timed) + len(missing) == 5 * 2 * 2
    assert ("original", "pyprune", 3) in missing
    assert ("original", "hf", 3) in timed
    assert ("depth 20%", "pyprune", 3) in timed
    line = next(
        line for line in table(results) if (line["row"], line["engine"], line["batch"]) == ("depth 20%", "pyprune", 3)
    )
    assert line["latency_s"] > 0
    assert line["speedup"] is None
    text, page = screen(results), (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "OOM 3 GiB" in text
    assert "wanda-sp 20% was not run: out of memory. It is planned at 3 GiB, of which 2 GiB" in " ".join(page.split())
    assert "<td>OOM</td>" in page


def test_the_room_counts_what_earlier_rows_will_take(monkeypatch):
    decoder = load(SHAPE)
    one = room.Room(decoder.device, 4, 64).shortage(decoder)
    cache = pyprune.plan_memory(decoder, 4, 64).cache
    monkeypatch.setattr(room.memory, "available", lambda device: one.needed_bytes + cache // 2)
    both = room.Room(decoder.device, 4, 64)
    assert both.admit(decoder) is None
    assert both.admit(decoder) == room.Shortage(
        one.planned_bytes, one.needed_bytes, one.needed_bytes - cache + cache // 2
    )
    transient = room.Room(decoder.device, 4, 64)
    assert transient.admit(decoder, keeps_cache=False) is None
    assert transient.admit(decoder, keeps_cache=False) is None


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_and_repeats_nothing_that_is_finished(tmp_path, monkeypatch, answered):
    out, left = tmp_path / "report", tmp_path / "report.unfinished"
    options = {**OPTIONS, "batches": [1, 2], "methods": ["flap"], "tasks": ["boolq"], "limit": 5}
    measured = timing._time_setting

    def interrupted(rows_, theirs, prompts, *rest):
        if len(prompts) == 2:
            raise KeyboardInterrupt
        return measured(rows_, theirs, prompts, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(timing, "_time_setting", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(SHAPE, out=out, **options)
    assert not out.exists()
    kept = json.loads((left / "results.json").read_text("utf-8"))
    first = kept["parts"]["timings, batch 1, 2 tokens"]
    asked = len(answered)
    assert asked == 4  # original, depth, width, padded

    with pytest.raises(InputError, match=r"report.unfinished: left by an interrupted comparison; continue"):
        compare(SHAPE, out=out, **options)
    with pytest.raises(InputError, match=r"with settings ratios \['20%'\].*; now settings is ratios \['30%'\]"):
        compare(SHAPE, out=out, resume=True, ratios=["30%"], **options)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("what was finished is done again")

    with monkeypatch.context() as patch:
        patch.setattr("pyprune.scoring.score", refuse)
        patch.setattr("pyprune.pruning.width", refuse)
        results = compare(SHAPE, out=out, resume=True, **options).results
    assert len(answered) == asked
    assert results["timings"][: len(first["timings"])] == first["timings"]
    assert {entry["batch"] for entry in results["timings"]} == {1, 2}
    assert not left.exists()
    assert json.loads((out / "results.json").read_text("utf-8")) == results


@pytest.mark.slow
def test_answers_of_a_row_that_was_interrupted_are_kept(tmp_path, monkeypatch, answered):
    out, options = tmp_path / "report", {**OPTIONS, "methods": ["flap"], "tasks": ["boolq"]}
    whole = accuracy.evaluate_tasks
    held = []

    def interrupted(model, *rest, resume, **keywords):
        held.append((resume.name, resume.exists()))
        if len(held) == 2:
            resume.write_text("answers")
            raise KeyboardInterrupt
        return whole(model, *rest, **keywords)

    monkeypatch.setattr(accuracy, "evaluate_tasks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(SHAPE, out=out, **options)
    compare(SHAPE, out=out, resume=True, **options)
    names = [name for name, _ in held]
    assert len(set(names)) == 4  # a file a row
    assert names[1] == names[2]
    assert [exists for _, exists in held] == [False, False, True, False, False]


def test_other_weights_are_not_resumed(tmp_path):
    from pyprune.study.unfinished import Unfinished

    def opened(weights):
        kept = Unfinished.open(tmp_path / "report", {"model": "m"}, resume=True)
        kept.require(weights=weights)
        return kept

    assert opened("a").part("row", lambda: {"ppl": 2.0}) == {"ppl": 2.0}
    assert opened("a").part("row", lambda: {"ppl": 3.0}) == {"ppl": 2.0}
    with pytest.raises(InputError, match="weights a; now weights is b"):
        opened("b")
    write_json(tmp_path / "report.unfinished" / "results.json", {"format": "other"})
    with pytest.raises(InputError, match="not an unfinished comparison"):
        opened("a")


def test_older_results_are_drawn_as_before(results, tmp_path):
    render(results, tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "Depth: whole blocks removed by ppl. Width:" in text
