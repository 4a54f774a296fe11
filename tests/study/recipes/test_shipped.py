"""The package's recipes: they are read, planned, and have the paper's numbers beside the right rows."""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import replace

import pytest

from pyprune.cli import build_parser
from pyprune.study.recipes.names import BUDGETS, SHIPPED, shipped_recipes
from pyprune.study.recipes.paper_numbers import check_paper, paper_number
from pyprune.study.recipes.plan import plan
from pyprune.study.recipes.recipe import read_recipe
from tests.cli.command_line import run as command_line


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


@pytest.mark.parametrize("name", ["table2", "table4", "table10", "figure1", "figure2", "figure6"])
def test_the_papers_times_stand_beside_hugging_face(name):
    chosen = read_recipe(name)
    papers = {column.value: column.paper for column in chosen.columns}
    assert papers["hf_tokens_per_s"] == "speeds:tokens_per_s"
    assert papers.get("hf_latency_s") in (None, "speeds:latency_s")
    assert [papers.get(value) for value in ("latency_s", "tokens_per_s", "speedup")] == [None] * 3


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
