"""Names and styles of rows: a width method brings its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyprune.pruning.method import Method, Style
from pyprune.pruning.width import METHODS
from pyprune.study.compare import compare
from pyprune.study.findings import findings
from pyprune.study.labels import label_of, style_of
from pyprune.study.protocols import Protocol
from pyprune.study.report import render

BRIEF = Protocol(
    "brief", input_tokens=4, output_tokens=(2,), warmups=0, runs=1, evaluation_tokens=64, evaluation_window=32
)


@pytest.fixture
def registered(monkeypatch):
    method = replace(
        METHODS["magnitude-sp"], label="Test Method", style=Style("#123456", "o"), padded_style=Style("#654321", "s")
    )
    monkeypatch.setitem(METHODS, "test-method", method)


@pytest.mark.slow
@pytest.mark.usefixtures("registered")
def test_a_method_that_is_registered_is_named_and_drawn_with_nothing_else_changed(tmp_path):
    comparison = compare(
        "shape:tiny", methods=["test-method"], batches=[1], protocol=BRIEF, dtype="float32", samples=2, seq_len=16,
        out=tmp_path / "report",
    )  # fmt: skip
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "narrowed by Test Method to the same number" in page
    assert any("Test Method ran at" in sentence for sentence in findings(comparison.results))
    assert style_of("test-method") == ("#123456", "o")
    assert style_of("test-method padded") == ("#654321", "s")


def test_a_method_cannot_be_made_without_label_and_styles():
    with pytest.raises(TypeError, match="label"):
        Method(lambda task: None, lambda task, importance: None)


def test_no_two_rows_of_a_comparison_look_alike():
    styles = [style_of(name) for name in ("original", "depth", *METHODS, *(f"{name} padded" for name in METHODS))]
    assert len({style.colour for style in styles}) == len(styles)
    assert len({style.marker for style in styles}) == len(styles)  # for readers who do not tell the colours apart
    assert len({METHODS[name].label for name in METHODS}) == len(METHODS)


@pytest.mark.slow
def test_results_of_a_method_that_is_not_installed_are_drawn(results, tmp_path):
    results["settings"]["methods"] = ["elsewhere"]
    for row in results["rows"]:
        row["method"] = row["method"].replace("wanda-sp", "elsewhere")
    render(results, tmp_path / "report")
    assert "narrowed by elsewhere" in (tmp_path / "report" / "index.html").read_text("utf-8")
    assert label_of("elsewhere") == "elsewhere"
