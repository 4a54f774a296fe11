"""`python -m bench.recipes`: what is there is passed over, what was measured is drawn, what takes long is ended."""

from __future__ import annotations

import argparse
import shutil
import sys

import pytest

from bench import recipes

COMMITTED = recipes.RESULTS / "repair-and-retrain"


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(budget="quick", wikitext="missing.txt", store=str(tmp_path / "store"), minutes=1.0)


def test_measured_results_without_a_page_are_drawn(options, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(COMMITTED / "results.json", out)
    assert recipes.outcome("table2", out, options) == "is measured already, and is drawn now"
    assert (out / "table.md").read_bytes() == (COMMITTED / "table.md").read_bytes()
    assert "<html" in (out / "index.html").read_text("utf-8")
    assert recipes.outcome("table2", out, options) == "is there already"
    (out / "index.html").unlink()  # it is not committed
    assert recipes.outcome("table2", out, options) == "is there already"
    (out / "table.md").unlink()
    (out / "results.json").write_text("{}")
    assert "cannot be drawn (KeyError" in recipes.outcome("table2", out, options)


def test_a_recipe_that_takes_too_long_is_ended(options, tmp_path, monkeypatch):
    run = recipes.subprocess.run
    monkeypatch.setattr(
        recipes.subprocess,
        "run",
        lambda words, **settings: run([sys.executable, "-c", "import time; time.sleep(600)"], **settings),
    )
    options.minutes = 0.02
    assert recipes.outcome("table2", tmp_path / "out", options).startswith("stopped after 0.02 minutes")


def test_the_exit_code_of_a_recipe_is_told(options, tmp_path, monkeypatch):
    began = []

    def run(words, check, timeout):
        began.append((words[1:], timeout))
        return argparse.Namespace(returncode=2)

    monkeypatch.setattr(recipes.subprocess, "run", run)
    assert recipes.outcome("table2", tmp_path / "out", options) == "0.0 minutes, exit code 2"
    ((words, timeout),) = began
    assert words[:4] == ["-m", "pyprune", "recipe", "table2"]
    assert timeout == 60.0
