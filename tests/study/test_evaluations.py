"""The seam for measures of quality: one file and one line make a new one, from the command to the page."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from pyprune.errors import InputError
from pyprune.study import requirements
from pyprune.study.columns import Column, ModelLine, Table, entry
from pyprune.study.compare import compare
from pyprune.study.config import CompareConfig
from pyprune.study.evaluations import DEFAULT, EVALUATIONS, Evaluation, Material
from pyprune.study.protocols import Protocol
from pyprune.study.redraw import redraw
from pyprune.study.report import render, terminal

BRIEF = Protocol(
    "brief", input_tokens=4, output_tokens=(2,), warmups=0, runs=1, evaluation_tokens=64, evaluation_window=32
)


@dataclass(frozen=True)
class BlockCount:
    """As a measure of quality: how many blocks are left, times a factor."""

    factor: int = 1
    name: ClassVar[str] = "block-count"
    needs: ClassVar[frozenset[Any]] = frozenset()
    columns: ClassVar[tuple[Column[ModelLine], ...]] = (
        Column("counted", "counted", "{:d} counted".format, entry("counted"), Table.CSV | Table.MODELS),
    )

    def check(self) -> None:
        pass

    def evaluate(self, name: str, decoder: Any, material: Material) -> dict[str, Any]:
        return {"counted": self.factor * len(decoder.blocks)}

    def findings(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        return [f"{row['name']} counts {row['counted']}." for row in rows]

    def settings(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def argv(self) -> list[str]:
        return ["--count-blocks", str(self.factor)]


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(EVALUATIONS, BlockCount.name, BlockCount)


@pytest.mark.slow
@pytest.mark.usefixtures("registered")
def test_a_new_evaluation_reaches_results_command_csv_page_and_screen(tmp_path):
    from rich.console import Console

    evaluations: tuple[Evaluation, ...] = (*DEFAULT, BlockCount(3))
    config = CompareConfig.of(
        evaluations=evaluations, batches=[1], protocol=BRIEF, dtype="float32", samples=2, seq_len=16
    )
    results = compare("shape:tiny", config, out=tmp_path / "report").results
    blocks = {row["name"]: row["blocks"] for row in results["rows"]}
    assert {row["name"]: row["counted"] for row in results["rows"]} == {name: 3 * n for name, n in blocks.items()}
    assert all(row["ppl"] > 1 for row in results["rows"])
    assert results["evaluations"] == {"perplexity": {}, "block-count": {"factor": 3}}
    assert "--count-blocks 3" in results["command"]
    with (tmp_path / "report" / "table.csv").open(encoding="utf-8", newline="") as source:
        assert {row["row"]: int(row["counted"]) for row in csv.DictReader(source)} == {
            n: 3 * b for n, b in blocks.items()
        }
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "<th>counted</th>" in page
    assert f"<td>{3 * blocks['original']} counted</td>" in page
    assert f"<tr><td>Quality</td><td>depth 20% counts {3 * blocks['depth 20%']}.</td></tr>" in page
    console = Console(width=200)
    with console.capture() as captured:
        for part in terminal(results):
            console.print(part)
    assert f"{3 * blocks['original']} counted" in captured.get()
    redraw([tmp_path / "report" / "results.json"], tmp_path / "again")
    assert (tmp_path / "again" / "index.html").read_text("utf-8") == page


def test_results_of_an_evaluation_that_is_not_known_are_refused_by_name(results, tmp_path):
    with pytest.raises(InputError, match="the evaluation 'magic': perplexity, accuracy are accepted"):
        render({**results, "evaluations": {"magic": {}}}, tmp_path / "report")


def test_without_perplexity_the_report_is_drawn_all_the_same(results, registered, tmp_path):
    for row in results["rows"]:
        del row["ppl"]
        row["counted"] = row["blocks"]
    render({**results, "evaluations": {"block-count": {"factor": 1}}}, tmp_path / "report")
    names = (tmp_path / "report" / "table.csv").read_text("utf-8").splitlines()[0].split(",")
    assert "counted" in names
    assert "ppl" not in names


def test_what_an_evaluation_needs_is_asked_of_the_model_before_scoring(monkeypatch):
    @dataclass(frozen=True)
    class Reading(BlockCount):
        name: ClassVar[str] = "reading"
        needs: ClassVar[frozenset[Any]] = frozenset({"tokenizer"})

    monkeypatch.setattr("pyprune.study.compare.choose_prunings", None)
    with pytest.raises(InputError, match="shape:tiny: has no tokenizer, which the evaluation reading needs"):
        compare("shape:tiny", evaluations=(Reading(),), protocol=BRIEF)


def test_only_an_evaluation_of_windows_asks_for_their_length():
    from pyprune.models import load

    decoder = load("shape:hidden=16,blocks=4,heads=2,kv_heads=1,head_dim=8,ffn=24,vocab=40")
    protocol = Protocol("wide", 4, (2,), 0, 1, evaluation_tokens=8192, evaluation_window=4096)
    config = CompareConfig(protocol=protocol, batches=(1,))
    with pytest.raises(InputError, match="needs 4096"):
        requirements.check_positions(decoder, config)
    requirements.check_positions(decoder, CompareConfig(protocol=protocol, evaluations=(BlockCount(),), batches=(1,)))


def test_two_evaluations_may_not_name_a_column_alike():
    @dataclass(frozen=True)
    class Second(BlockCount):
        name: ClassVar[str] = "second"

    with pytest.raises(InputError, match="columns counted, counted"):
        CompareConfig(evaluations=(BlockCount(), Second()))


def test_the_defaults_survive_json():
    assert json.loads(json.dumps([one.settings() for one in DEFAULT])) == [{}]
