"""The page of what repair wins back: every cell of the study has its row, whichever part it was run for."""

from __future__ import annotations

import pytest

import pyprune
from bench import repair_study
from bench.pages import recovery
from bench.repair_study import PARTS, cells
from pyprune.evaluation.paper_tasks import PAPER_TASKS


def entry(part, cell, number):
    """A made-up result; what is won back of both texts is `number` percent."""
    made = {"part": part, "cell": cell, "machine": 0, "processor_seconds": 60.0 * number}
    if part == "tasks":
        shares = ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")
        return made | {"tasks": {name: dict.fromkeys(shares, number / 100) for name in PAPER_TASKS}}
    quality = {"original": 50.0, "pruned": 200.0, "repaired": 100.0, "recovered": number / 100}
    stages = [{"method": cell["method"].replace("auto", "refit-all-o+tail" if number % 2 else "refit-all-o")}]
    removed = {"blocks": [1, number]}
    return made | {"removed": removed, "stages": stages, "perplexity": dict.fromkeys(recovery.TEXTS, quality)}


def machine(flag, products="fp32", commit="a"):
    return {"cpu": "CPU", "cpu_flags": [flag], "usable_cores": 2, "products_of_steps": products, "commit": commit}


@pytest.fixture
def study(monkeypatch):
    """A study in which each different cell is once, as `bench.repair_study` writes it."""
    entries: list = []
    for part in PARTS:
        for cell in cells(part):
            if all(cell != present["cell"] for present in entries):
                entries.append(entry(part, cell, len(entries)))
    monkeypatch.setattr(recovery, "read", lambda name: {"machines": [machine("avx2")], "cells": entries})
    return entries


def tables(page):
    """Of each table the rows under its header."""
    parts = page.split("\n\n")
    return [part.splitlines()[2:] for part in parts if part.startswith("| ")]


def test_each_part_has_a_row_for_each_of_its_cells(study):
    perplexities, methods, width, seeds, ratios, fitted, tuning, tasks = tables(recovery.repairs())
    assert len(methods) == len({cell["method"] for part in ("methods", "steps", "auto") for cell in cells(part)})
    assert len(width) == len({cell["method"] for cell in cells("width")})
    assert [row.count("(") for row in seeds] == [2, 2]
    assert all("1 of 2" in row for row in seeds)  # three draws of two blocks, of which the first one is common
    assert len(ratios) == len(cells("ratios"))
    assert len(tuning) == len(cells("tuning"))
    assert len(tasks) == len(cells("tasks"))
    assert len(fitted) == len({str({**cell}) for part in ("tokens", "texts", "first") for cell in cells(part)})
    assert perplexities[0].startswith("| original | 50 | 50 |")


def test_a_share_stands_in_the_row_of_its_cell(study):
    chosen = next(e for e in study if e["cell"]["method"] == "auto" and e["cell"]["ratio"] == 0.35)
    share = f"{chosen['perplexity']['boolq']['recovered']:.0%}"
    row = next(row for row in tables(recovery.repairs())[4] if "one-shot 35%" in row and "`auto`" in row)
    assert row.count(share) == 2


def test_parts_that_were_not_run_have_no_table(study):
    study[:] = [present for present in study if present["part"] == "methods"]
    assert len(tables(recovery.repairs())) == 2  # of seeds, texts and others only the cells that methods has


def test_what_auto_came_to_is_counted(study):
    auto = [
        present["stages"][-1]["method"]
        for present in study
        if present["cell"]["method"] == "auto" and "stages" in present
    ]
    counts = {method: auto.count(method) for method in auto}
    assert len(counts) == 2
    page = " ".join(recovery.repairs().split())
    for method, count in counts.items():
        assert f"`{method}` ({count}x)" in page


def test_minutes_are_said_to_compare_only_on_one_machine(study):
    assert "Measured on 2 cores of an CPU (avx2), gradient steps in fp32.\n" in recovery.repairs()
    two_commits = recovery.measured_on([machine("avx2"), machine("avx2", commit="b")])
    assert "compare" not in two_commits
    two_machines = recovery.measured_on([machine("avx2"), machine("avx512_bf16", "bf16")])
    assert two_machines == (
        "Measured on 2 cores of an CPU (avx2), gradient steps in fp32; 2 cores of an CPU (avx512_bf16), gradient steps"
        " in bf16. Minutes of different machines do not compare."
    )


def test_a_study_names_each_machine_once(monkeypatch):
    decoder = pyprune.load("shape:tiny")
    done = {}
    assert [repair_study.this_machine(done, decoder) for _ in range(2)] == [0, 0]
    monkeypatch.setattr(repair_study, "default_precision", lambda _: "another")
    assert repair_study.this_machine(done, decoder) == 1
    assert [entry["products_of_steps"] for entry in done["machines"]][1] == "another"
