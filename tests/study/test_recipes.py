"""Recipes: those of the package are read and planned, a small one runs and resumes, and bad ones are refused."""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pyprune.cli import build_parser
from pyprune.commands import recipe as command
from pyprune.errors import InputError
from pyprune.models import load
from pyprune.study.labels import styles
from pyprune.study.recipes import models
from pyprune.study.recipes import run as module
from pyprune.study.recipes.agreement import agreement, compared_pairs, difference, incomparable
from pyprune.study.recipes.figures import figures, series_looks
from pyprune.study.recipes.names import BUDGETS, SHIPPED, shipped_recipes
from pyprune.study.recipes.paper_numbers import check_paper, paper_number
from pyprune.study.recipes.plan import plan
from pyprune.study.recipes.recipe import FIGURES, read_recipe
from pyprune.study.recipes.report import drawn
from pyprune.study.recipes.run import RecipeResult, recipe
from pyprune.study.recipes.store import Store, content_key
from pyprune.study.recipes.table import cells
from pyprune.study.recipes.texts import read_part, read_texts
from pyprune.study.recipes.values import counted
from pyprune.study.redraw import redraw
from tests.cli.command_line import run as command_line

SMALL = """
title = "Small"
shows = "Blocks against FLAP."

[paper]
setup = "another model"
where = { model = "llama-7b" }

[measures]
perplexity = true
memory = { batches = [1], output_tokens = [8], input_tokens = 4 }
scores = ["ppl", "magnitude"]

[budget.quick]
samples = 2
seq_len = 8
tokens = 48
window = 8
steps = 1
round_steps = 1
batch = 2
micro_batch = 2
cutoff = 8
held_out = { novel = "given", other = "given" }

[[models]]
name = "Original"
x = 0

[[models]]
name = "Blocks {ratio}"
each = { ratio = ["25%", "45%"] }
prune = { method = "depth", amount = "{ratio}" }
group = "{ratio}"
series = "blocks"
x = "{ratio}"
paper = { ratio = "20%", method = "depth", criterion = "ppl" }

[[models]]
name = "FLAP 25%"
prune = { method = "flap", amount = "25%" }
group = "25%"
series = "FLAP"
x = 25
paper = { ratio = "20%", method = "flap" }

[[models]]
name = "Trained 25%"
prune = { method = "depth", amount = "25%" }
retrain = true
group = "25%"
series = "trained"
x = 25

[[columns]]
value = "parameters"

[[columns]]
value = "ppl"
paper = "quality:ppl_wikitext2"

[[columns]]
value = "memory:8x1"

[figure]
kind = "lines"
y = ["ppl"]
x = "Removed (%)"

[[claims]]
text = "Pruning takes less memory."
value = "memory:8x1"
rows = "Blocks|FLAP"
relation = "lower"
than = "Original"
"""

ITERATIVE = """
[[models]]
name = "Iterative {count}"
each = { count = [1, 2] }
prune = { method = "depth", search = "iterative", amount = "{count}" }
retrain = true
series = "iterative"
x = "{count}"
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "small.toml"
    file.write_text(SMALL)
    return file


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """An undisturbed run: its results and its directory."""
    out = tmp_path_factory.mktemp("finished") / "out"
    return recipe(small, "shape:tiny", out=out).results, out


def measured(results):
    """What of results does not depend on the time of day."""
    keys = ("name", "values", "errors", "removed", "key", "retrained", "paper")
    return [{key: row[key] for key in keys} for row in results["rows"]], results["scores"]


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_is_read_looked_up_and_planned(name, tiny):
    chosen = read_recipe(name)
    check_paper(chosen)
    for budget in BUDGETS:
        settings = chosen.budgets[budget]
        planned = plan(chosen, settings, tiny, rate=1000.0, tasks=None)
        assert planned.cells
        assert planned.seconds > 0
    quick = chosen.budgets["quick"]
    if quick.steps and any(model.retrain for model in chosen.models):
        notes = plan(chosen, quick, tiny, rate=1000.0, tasks=None).notes
        assert any(f"Retraining is capped at {quick.steps} steps" in note for note in notes)


def test_the_recipes_are_those_of_the_papers_tables_and_figures():
    assert shipped_recipes() == [
        "figure1", "figure2", "figure4", "figure5", "figure6", "table2", "table4", "table5", "table6", "table7",
        "table8", "table9", "table10",
    ]  # fmt: skip


def test_the_papers_numbers_stand_beside_the_right_rows():
    chosen = read_recipe("table2")
    columns = {column.value: column for column in chosen.columns}
    named = {model.name: model for model in chosen.models}
    assert paper_number(chosen, named["Depth, PPL 35%"], columns["ppl:wikitext2"]) == 23.1
    assert paper_number(chosen, named["FLAP 27%"], columns["accuracy"]) == 55.8
    assert paper_number(chosen, named["Depth, Taylor+ 20%"], columns["hf_tokens_per_s"]) == 66.0
    assert paper_number(chosen, named["Original"], columns["ppl:ptb"]) == 22.1
    seventh = read_recipe("table7")
    named = {model.name: model for model in seventh.models}
    columns = {column.value: column for column in seventh.columns}
    assert "LLM-Pruner, 1000 windows" not in named
    least = named["LLM-Pruner, 100 windows"]
    assert paper_number(seventh, least, columns["accuracy"]) == 61.7
    largest = replace(least, paper={"samples": "1000", "method": "llm-pruner"})
    assert paper_number(seventh, largest, columns["accuracy"]) == "OOM"
    assert paper_number(seventh, named["Depth, Taylor+, 100 windows"], columns["ppl:wikitext2"]) == 19.0
    for name, rows in (
        ("table2", {"Original": 32, "FLAP 27%": 32, "Depth, Taylor+ 20%": 26, "Depth, PPL 35%": 21}),
        ("table4", {"Original": 40, "Depth, PPL 21%": 32}),
        ("figure1", {"Depth, PPL 27%": 23}),
        ("table10", {"Depth, PPL 20%": 26}),
        ("table5", {"magnitude+ 20%": 26, "ppl 35%": 21}),
    ):
        other = read_recipe(name)
        column = next(column for column in other.columns if column.value == "blocks")
        named = {model.name: model for model in other.models}
        assert {row: paper_number(other, named[row], column) for row in rows} == rows
    ninth = read_recipe("table9")
    column = next(column for column in ninth.columns if column.value == "memory:512x16")
    assert [paper_number(ninth, model, column) for model in ninth.models] == [25.0, 20.4, 18.1, 16.6]


def test_the_papers_averages_are_the_means_of_its_seven_tasks():
    with (SHIPPED.parents[1] / "paper" / "quality.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 48
    for line in lines:
        tasks = [float(value) for value in list(line.values())[7:]]
        assert sum(tasks) / 7 == pytest.approx(float(line["average"]), abs=0.06), line


def test_a_recipe_runs_from_end_to_end(finished):
    results, out = finished
    assert sorted(path.name for path in out.iterdir()) == [
        "figure.png", "index.html", "results.json", "table.csv", "table.md"
    ]  # fmt: skip
    assert not out.with_name("out.unfinished").exists()
    rows = {row["name"]: row for row in results["rows"]}
    # Groups stand together, in the order in which they first come.
    assert list(rows) == ["Original", "Blocks 25%", "FLAP 25%", "Trained 25%", "Blocks 45%"]
    assert rows["Blocks 25%"]["values"]["blocks"] == 3
    assert rows["FLAP 25%"]["values"]["parameters"] == pytest.approx(
        rows["Blocks 25%"]["values"]["parameters"], rel=0.005
    )
    assert rows["Trained 25%"]["values"]["ppl"] != rows["Blocks 25%"]["values"]["ppl"]
    assert rows["Trained 25%"]["made"]["trained_steps"] == 1
    assert rows["Blocks 25%"]["values"]["ppl"] == rows["Blocks 25%"]["values"]["ppl:novel"]
    assert rows["FLAP 25%"]["paper"] == {"ppl": 17.0}
    page = (out / "index.html").read_text()
    assert "Pruning takes less memory. It holds here, in 3 comparisons" in page
    assert "results are for another model; these are for shape:tiny" in page
    assert 'src="data:image/png' in page
    assert page.count("<script") == page.count("<script>") == 1  # the page's own, which loads nothing
    assert 'src="http' not in page


def test_the_page_is_drawn_again_from_the_results_alone(finished, tmp_path):
    _, out = finished
    redraw([out / "results.json"], tmp_path / "again")
    for name in ("table.csv", "table.md", "index.html"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_every_kind_of_figure_is_drawn(finished):
    results = copy.deepcopy(finished[0])
    names = [row["name"] for row in results["rows"]]
    for row in results["rows"]:
        row["timed_as"] = "original" if row["method"] == "original" else row["name"]
    results["timings"] = [
        {
            "protocol": {"input_tokens": 4, "output_tokens": [2]},
            "batches": [1, 4],
            "timings": [
                {"row": name if name != "Original" else "original", "engine": engine, "batch": batch,
                 "output_tokens": 2, "seconds": [1.0 + place, 1.1 + place]}
                for place, name in enumerate(names) for engine in ("hf", "pyprune") for batch in (1, 4)
            ],
            "oom": [],
        }
    ]  # fmt: skip
    drawn = {}
    for kind in FIGURES:
        results["recipe"]["figure"]["kind"] = kind
        drawn[kind] = figures(results)
        assert all(image.startswith(b"\x89PNG") for _, image in drawn[kind].values())
    assert {kind: list(images) for kind, images in drawn.items()} == {
        "none": [], "lines": ["figure.png"], "quality-speed": ["speed.png"], "latency-batch": ["latency.png"],
        "scores": ["scores-ppl.png", "scores-magnitude.png", "map.png"],
    }  # fmt: skip
    caption, image = drawn["quality-speed"]["speed.png"]
    assert caption == "Quality, latency and throughput, 4 input tokens"
    for row in results["rows"]:
        row["values"] = {name: value for name, value in row["values"].items() if not name.startswith("ppl")}
    results["recipe"]["figure"]["kind"] = "quality-speed"
    alone_caption, alone = figures(results)["speed.png"]
    assert alone_caption == "Latency and throughput, 4 input tokens"
    # Half as wide and as high: no empty panels are left.
    assert [2 * size for size in pixels(alone)[:1]] + [pixels(alone)[1]] == pixels(image)


def pixels(png: bytes) -> list[int]:
    """Width and height of a PNG."""
    return [int.from_bytes(png[place : place + 4], "big") for place in (16, 20)]


def test_series_of_one_kind_have_different_colours():
    rows = [{"series": series, "method": f"depth {series}"} for series in ("magnitude", "magnitude+", "taylor", "ppl")]
    assert len({look.colour for look in series_looks(rows).values()}) == 4
    methods = ["original", "flap", "wanda-sp", "llm-pruner", "depth ppl"]
    kept = series_looks([{"series": method, "method": method} for method in methods])
    assert {method: look.colour for method, look in kept.items()} == {
        method: look.colour for method, look in styles(methods).items()
    }


def test_an_interrupted_recipe_goes_on_to_equal_results(small, finished, tmp_path, monkeypatch):
    measure, calls = module.perplexity_of, []

    def interrupted(*words):
        calls.append(words)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(*words)

    monkeypatch.setattr(module, "perplexity_of", interrupted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        recipe(small, "shape:tiny", out=out)
    assert not out.exists()
    with pytest.raises(InputError, match="--resume continues it"):
        recipe(small, "shape:tiny", out=out)
    resumed = recipe(small, "shape:tiny", out=out, resume=True).results
    # Five rows, of which three were finished; the fourth, which is retrained, was begun twice.
    assert len(calls) == 6
    assert measured(resumed) == measured(finished[0])
    assert not out.with_name("out.unfinished").exists()


@pytest.mark.slow
def test_a_store_serves_other_recipes_of_the_same_model(small, finished, tmp_path, monkeypatch):
    store = tmp_path / "store"
    recipe(small, "shape:tiny", store=store)
    other = tmp_path / "other.toml"
    other.write_text(SMALL.replace('title = "Small"', 'title = "Other"'))

    def never(*_: object, **__: object):
        raise AssertionError("made a second time")

    monkeypatch.setattr(module, "perplexity_of", never)
    for name in ("retrained", "scoring"):
        monkeypatch.setattr(models, name, never)
    assert measured(recipe(other, "shape:tiny", store=store).results) == measured(finished[0])
    with pytest.raises(AssertionError, match="second time"):
        recipe(other, "shape:tiny,blocks=5", store=store)


@pytest.mark.slow
def test_iterative_rows_are_rounds_of_one_pruning(tmp_path):
    file = tmp_path / "iterative.toml"
    text = SMALL.replace("memory = { batches = [1], output_tokens = [8], input_tokens = 4 }\n", "")
    text = text[: text.index('[[models]]\nname = "Blocks')] + ITERATIVE + text[text.index("[[columns]]") :]
    text = text.replace('[[columns]]\nvalue = "memory:8x1"\n', "")
    file.write_text(text[: text.index("[[claims]]")])
    rows = recipe(file, "shape:tiny").results["rows"]
    assert [row["values"].get("blocks") for row in rows] == [4, 3, 2]
    assert rows[2]["removed"]["units"][:1] == rows[1]["removed"]["units"]
    assert rows[1]["made"] == {"steps": 1, "trainings": 1}


def test_agreement_counts_signs_of_differences_within_groups():
    def row(name, group, ours, theirs, error=0.0):
        return {
            "name": name, "group": group, "method": "depth", "values": {"accuracy": ours},
            "errors": {"accuracy": error}, "losses": {}, "intervals": {}, "paper": {"accuracy": theirs},
            "retrained": False,
        }  # fmt: skip

    rows = [row("a", "1", 10, 20), row("b", "1", 11, 30), row("c", "1", 12, 25, 0.2), row("d", "2", 1, 99)]
    pairs = compared_pairs(rows, "accuracy")
    assert (pairs.agree, pairs.undecided, pairs.against) == (2, 0, [("b", "c")])
    assert pairs.verdict == "agrees in part"
    rows[2]["errors"]["accuracy"] = 1.0
    pairs = compared_pairs(rows, "accuracy")
    assert (pairs.agree, pairs.undecided, pairs.against) == (1, 2, [])
    recipe_data = {"columns": [{"value": "accuracy", "header": "acc."}], "claims": [], "paper_setup": ""}
    (sentence,) = agreement({"rows": rows, "recipe": recipe_data})
    assert "1 differ as in the paper, 0 the other way, and 2 too little" in sentence
    assert incomparable({"recipe": recipe_data}) == []


def test_what_does_not_compare_says_how_speed_was_measured(finished):
    results = copy.deepcopy(finished[0])
    results["recipe"]["measures"]["speed"] = {}
    protocol = {"input_tokens": 12, "output_tokens": [16, 48]}
    results["timings"] = [{"protocol": protocol, "batches": [4, 1], "timings": [], "oom": []}]
    results["machine"] |= {"cpu": "A CPU", "gpus": [{"name": "A GPU"}]}
    paper = (
        "The paper timed Hugging Face transformers (HF) on GPUs, in Tables 2 and 4 with 12 input and 128 new tokens "
        "at batch 1."
    )
    measured_here = "in bfloat16: 12 input and 48 new tokens, batch 1, 6 runs after 1 warm-up."
    assert f"Speed in the table is measured on A CPU {measured_here} {paper}" in incomparable(results)
    results["device"] = "cuda"
    assert f"Speed in the table is measured on A GPU {measured_here} {paper}" in incomparable(results)
    protocol["output_tokens"] = [128, 512]
    assert any("12 input and 128 new tokens, batch 1, 6" in sentence for sentence in incomparable(results))


def test_what_does_not_compare_says_how_long_rows_were_trained(finished):
    results = copy.deepcopy(finished[0])
    (sentence,) = (text for text in incomparable(results) if "Retraining" in text)
    # One step of two samples of eight tokens.
    assert "random token ids, at most 16 tokens a row, at learning rate 0.0005 in bf16; the paper" in sentence
    once = results["rows"][-2]
    assert once["retrained"]
    results["rows"].append({**once, "made": {"steps": 1, "trainings": 2}})
    results["budget"]["round_steps"] = 3
    (sentence,) = (text for text in incomparable(results) if "Retraining" in text)
    assert "a row, an iterative row at most 48 tokens after every removal, so up to 96, at" in sentence
    once["retrained"] = False
    (sentence,) = (text for text in incomparable(results) if "Retraining" in text)
    assert "random token ids, an iterative row at most 48 tokens" in sentence


@pytest.mark.parametrize("name", ["table2", "table4", "table10", "figure1", "figure2", "figure6"])
def test_the_papers_times_stand_beside_hugging_face(name):
    chosen = read_recipe(name)
    papers = {column.value: column.paper for column in chosen.columns}
    assert papers["hf_tokens_per_s"] == "speeds:tokens_per_s"
    assert papers.get("hf_latency_s") in (None, "speeds:latency_s")
    assert [papers.get(value) for value in ("latency_s", "tokens_per_s", "speedup")] == [None] * 3


def test_a_factor_multiplies_the_error_too():
    def row(value, error):
        values, errors = {"repeated_4grams": value}, {"repeated_4grams": error}
        return {"values": values, "errors": errors, "losses": {}, "intervals": {}}

    # 0.30 against 2 * 0.10: two standard errors of the difference are 0.084, or, with a larger error, 0.12.
    assert difference(row(0.30, 0.03), row(0.10, 0.015), "repeated_4grams", 2.0) == 1
    assert difference(row(0.30, 0.03), row(0.10, 0.026), "repeated_4grams", 2.0) == 0
    assert difference(row(0.30, None), row(0.10, None), "repeated_4grams", 2.0) == 1


def test_a_claim_names_the_text_of_its_perplexity(finished):
    results = copy.deepcopy(finished[0])
    claim = {"text": "It gets worse.", "value": "ppl", "rows": "Blocks", "relation": "higher", "than": "Original"}
    results["recipe"]["claims"] = [{**claim, "factor": 1.0}]
    assert re.search(r"\d comparisons? of PPL novel[,.]", agreement(results)[-1])


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_claim_of_a_shipped_recipe_compares_some_rows(name):
    chosen = read_recipe(name)
    for claim in chosen.claims:
        sides = [
            [model for model in chosen.models if any(part in model.name for part in pattern.split("|"))]
            for pattern in (claim.rows, claim.than)
        ]
        pairs = [
            (a.name, b.name)
            for a, b in itertools.product(*sides)
            if a is not b and (a.group == b.group or b.prune is None)
        ]
        assert pairs, claim.text
        if claim.factor != 1:
            assert "(tested " in claim.text
        if name == "table5" and claim.factor == 2:
            word = claim.text.split()[0].lower()
            assert pairs == [(f"{word} {ratio}", f"{word}+ {ratio}") for ratio in ("20%", "35%")]


def test_columns_without_a_number_of_ours_are_left_out(finished, capsys, monkeypatch):
    results = copy.deepcopy(finished[0])
    accuracy = {"value": "accuracy", "header": "mean acc. %", "paper": None, "where": {}}
    results["recipe"]["columns"] = [*results["recipe"]["columns"], accuracy]
    results["rows"][1]["paper"]["accuracy"] = 50.0
    header, rows = cells(results)
    assert header == ["model", "M params", "PPL", "paper", "GiB, L 8, M 1"]
    assert rows[1][3] == "17.7"
    header, rows = cells(results, paper=False)
    assert header == ["model", "M params", "PPL", "GiB, L 8, M 1"]
    assert {len(row) for row in rows} == {4}
    monkeypatch.setattr(command, "SHOWN", 3)
    options = argparse.Namespace(out="somewhere")
    command._report(options, results)
    shown = capsys.readouterr().out
    assert "PPL" in shown
    assert "GiB" not in shown.split("- ")[0]
    assert "All 4 columns: somewhere/table.md" in shown


def test_a_page_without_standard_errors_does_not_explain_them(finished):
    results = copy.deepcopy(finished[0])
    assert "± is a standard error" in drawn(results)["index.html"].decode()
    results["recipe"]["columns"] = [column for column in results["recipe"]["columns"] if column["value"] != "ppl"]
    assert "± is a standard error" not in drawn(results)["index.html"].decode()


def test_texts_that_nobody_named_are_told_where_they_have_a_column(finished):
    results = copy.deepcopy(finished[0])
    results["left_out"] = ["ptb", "news"]
    assert not any("No text was named" in sentence for sentence in incomparable(results))
    missing = {"value": "ppl:ptb", "header": "PPL ptb", "paper": None, "where": {}}
    results["recipe"]["columns"] = [*results["recipe"]["columns"], missing]
    assert "No text was named for ptb: the table has no column of it." in incomparable(results)


def test_one_of_a_thing_is_no_plural():
    assert [counted(count, "warm-up") for count in (0, 1, 2)] == ["0 warm-ups", "1 warm-up", "2 warm-ups"]


def test_a_plan_counts_the_texts_that_are_named(tiny, small):
    chosen = read_recipe(small)
    both, one = (
        plan(chosen, chosen.budgets["quick"], tiny, rate=1000.0, tasks=None, held_out=count) for count in (None, 1)
    )
    quality = [sum(cell.seconds for cell in planned.cells if "measure, " in cell.name) for planned in (both, one)]
    assert quality[1] == pytest.approx(quality[0] / 2)


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


def test_a_wikitext_with_unknown_words_is_marked(finished):
    results = copy.deepcopy(finished[0])
    results["held_out"] = {"wikitext2": {**results["held_out"]["novel"], "has_unk": True}}
    assert cells(results)[0][2] == "PPL (unk variant)"
    assert any("has unk for rare words" in sentence for sentence in incomparable(results))
    results["held_out"] = {"novel": results["held_out"]["wikitext2"]}
    assert cells(results)[0][2] == "PPL"
    assert not any("has unk for rare words" in sentence for sentence in incomparable(results))


def test_perplexities_are_compared_window_by_window():
    def row(nll):
        losses = {"nll": nll, "tokens": [10.0] * len(nll)}
        value = math.exp(sum(nll) / (10 * len(nll)))
        return {"values": {"ppl": value}, "errors": {"ppl": value}, "losses": {"ppl": losses}, "intervals": {}}

    # The windows differ a lot, the two models hardly, but always to the same side.
    a, b = row([10.0, 30.0, 50.0, 20.0]), row([10.4, 30.5, 50.4, 20.5])
    assert (difference(a, b, "ppl"), difference(b, a, "ppl")) == (-1, 1)
    assert difference(a, b, "ppl", factor=0.5) == 1
    assert difference(a, row([10.4, 29.5, 50.4, 19.8]), "ppl") == 0
    endless = {"values": {"ppl": None}, "errors": {}, "losses": {}, "intervals": {}}
    assert (difference(endless, a, "ppl"), difference(a, endless, "ppl")) == (1, -1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "Small"\n', "", "title is missing; a text is expected"),
        ('title = "Small"', "title = 3", "title 3: a text is expected"),
        ('title = "Small"', 'title = "Small"\ncolour = "red"', "colour 'red': no such key; "),
        ('method = "flap"', 'method = "magic"', "models 3, prune: method 'magic': one of depth, wanda-sp"),
        ('amount = "25%" }\ngroup', 'amount = "125%" }\ngroup', "amount '125%': a share of the parameters (20%) or"),
        ('amount = "25%" }\ngroup', 'amount = "2" }\ngroup', "amount 2: a share of the parameters is expected for"),
        ('method = "depth", amount = "25%"', 'method = "depth", criterion = "luck", amount = "25%"', "'luck'"),
        ('method = "flap", ', 'method = "flap", unit = "mha", ', "unit 'mha': does not belong to method flap"),
        ("retrain = true", 'retrain = "yes"', "models 4: retrain 'yes': true or false is expected"),
        ("samples = 2", "samples = 0", "budget.quick: samples 0: a whole number from 1 is expected"),
        ("[budget.quick]", "[budget.slow]", "budget 'slow': quick or paper is expected"),
        ("batch = 2", "batch = 3", "batch 3: a multiple of micro_batch, 2, is expected"),
        ('value = "memory:8x1"', 'value = "memory:8"', "columns 3: value 'memory:8': one of parameters"),
        ('value = "parameters"', 'value = "accuracy"', "value 'accuracy': is not measured; tasks under measures"),
        ('name = "FLAP 25%"', 'name = "FLAP {much}"', "models 3: {much}: is not a key of each"),
        ('method = "flap", amount = "25%"', 'method = "flap"', "prune: amount is missing; a share of the parameters"),
        ('kind = "lines"', 'kind = "cake"', "figure: kind 'cake': one of none, lines"),
        ('kind = "lines"', 'kind = "quality-speed"', "kind 'quality-speed': needs speed under measures"),
        ('relation = "lower"', 'relation = "nicer"', "claims 1: relation 'nicer': one of lower, higher is expected"),
        ('name = "FLAP 25%"', 'name = "Original"', "models: 'Original' twice"),
        ('ratio = ["25%", "45%"]', 'ratio = "25%"', "each {'ratio': '25%'}: a list of one or more values"),
        ('"quality:ppl_wikitext2"', '"quality:beauty"', "paper 'quality:beauty': model, ratio"),
        ('"quality:ppl_wikitext2"', '"none:beauty"', "paper 'none:beauty': no file none.csv"),
        ('title = "Small"', "title = ", "not TOML"),
    ],
)  # fmt: skip
def test_a_bad_recipe_names_key_value_and_what_is_expected(tmp_path, monkeypatch, old, new, message):
    monkeypatch.setattr(module, "load", None)
    assert old in SMALL
    file = tmp_path / "bad.toml"
    file.write_text(SMALL.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        recipe(file, "shape:tiny")
    assert message in str(error.value)
    assert "bad" in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table3", "shape:tiny"], "recipe 'table3': figure1, "),
        (["table2"], "recipe: MODEL is missing"),
        ([], "recipe: NAME is missing"),
        (["table2", "shape:tiny"], "shape:tiny: has no tokenizer, which tasks of recipe table2 need"),
        (
            ["SMALL", "shape:tiny", "--text", "poem=a.txt"],
            "--text poem=...: calibration, training, ",
        ),
        (["SMALL", "shape:tiny", "--text", "poem"], "'poem': ROLE=TEXT"),
        (["SMALL", "shape:tiny", "--resume"], "--resume: finished work is kept beside --out"),
        (["SMALL", "shape:tiny", "--budget", "rich"], "--budget: invalid choice: 'rich'"),
        (["SMALL", "shape:tiny,blocks=1"], "recipe small, Blocks 25%: "),
        (["SMALL", "shape:tiny", "--text", "calibration=missing.txt"], "missing.txt: No such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, small, words, message):
    words = [small if word == "SMALL" else word for word in words]
    code, out, err = command_line(capsys, "recipe", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_the_list_and_the_plan_are_printed(capsys, small):
    code, out, _ = command_line(capsys, "recipe", "--list", "--json")
    assert code == 0
    assert [entry["name"] for entry in json.loads(out)] == shipped_recipes()
    code, out, _ = command_line(capsys, "recipe", small, "shape:tiny", "--plan")
    assert code == 0
    assert "retrain, Trained 25%" in out
    assert "Retraining is capped at 1 step of 2 sequences" in out
    code, out, _ = command_line(capsys, "recipe", small, "shape:tiny", "--plan", "--json")
    assert json.loads(out)["seconds"] > 0


def test_the_help_names_every_recipe():
    parser = build_parser()._subparsers._group_actions[0].choices["recipe"]
    assert all(name in parser.format_help().replace("\n", " ") for name in shipped_recipes())


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
    with pytest.raises(InputError, match="demo:boolq: is a text of the tasks"):
        read_texts(budget, {**halves, "training": "demo:boolq"}, False, True)
    instructed = replace(budget, training=None, instructions="given")
    with pytest.raises(InputError, match="--text instructions=FILE is expected"):
        read_texts(instructed, {"calibration": str(file), "novel": str(other)}, False, True)


def test_a_piece_of_a_store_is_made_once_and_whole(tmp_path):
    store, made = Store(tmp_path / "store"), []

    def make():
        made.append(1)
        if len(made) == 1:
            raise RuntimeError("stopped")
        return {"value": len(made)}

    with pytest.raises(RuntimeError):
        store.part("kind", {"a": 1}, make)
    assert not store.has("kind", {"a": 1})
    assert list((tmp_path / "store").iterdir()) == []
    assert store.part("kind", {"a": 1, "b": 2}, make) == {"value": 2}
    assert store.part("kind", {"b": 2, "a": 1}, make) == {"value": 2}
    assert store.part("kind", {"a": 2}, make) == {"value": 3}
    assert content_key({"a": 1}) != content_key({"a": 2})


def test_a_piece_made_within_another_is_timed_once(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("pyprune.study.recipes.store.time.perf_counter", lambda: clock[0])
    store = Store(tmp_path / "store")

    def model():
        clock[0] += 100.0
        return {}

    def failing():
        clock[0] += 7.0
        raise RuntimeError("stopped")

    def perplexity():
        clock[0] += 1.0
        store.part("model", {}, model)
        with pytest.raises(RuntimeError):
            store.part("broken", {}, failing)
        clock[0] += 2.0
        store.part("model", {}, model)  # it is there
        return {}

    store.part("perplexity", {}, perplexity)
    store.part("other", {}, lambda: clock.append(clock.pop() + 5.0))
    assert {name.split("-")[0]: seconds for name, seconds in store.seconds.items()} == {
        "model": 100.0, "perplexity": 3.0, "other": 5.0
    }  # fmt: skip


def test_equal_prunings_of_different_names_are_one_model(small, tmp_path):
    chosen = read_recipe(small)
    budget = chosen.budgets["quick"]
    made = models.Models(load("shape:tiny"), read_texts(budget, {}, True, True), budget, Store(tmp_path / "store"))
    blocks = next(model for model in chosen.models if model.name == "Blocks 25%")
    same = replace(blocks, name="other", prune=replace(blocks.prune, amount="1"))
    assert made.content(blocks) == made.content(same)
    assert made.content(blocks) != made.content(chosen.models[0])


def test_a_recipe_without_anything_of_the_paper_has_no_heading_for_it(tmp_path):
    committed = Path(__file__).parents[2] / "bench" / "results" / "recipes" / "repair-and-retrain" / "results.json"
    RecipeResult(json.loads(committed.read_text("utf-8"))).save(tmp_path / "again")
    table = (tmp_path / "again" / "table.md").read_text("utf-8")
    assert "Against the paper" not in table
    assert table.count("\n| ") == 15  # header, rule and 13 models
    assert table == committed.with_name("table.md").read_text("utf-8")
