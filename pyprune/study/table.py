"""The comparison's derived numbers: one line a row, engine, batch and output length, from the results alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyprune.study.columns import MODEL_COLUMNS, TIMING_COLUMNS, Column, ModelLine, Table, TimingLine, shown
from pyprune.study.evaluations import evaluations_of
from pyprune.study.labels import ORIGINAL


def model_columns(results: dict[str, Any]) -> list[Column[ModelLine]]:
    """The columns of a model: names and sizes, and those of the evaluations."""
    return [*MODEL_COLUMNS, *(column for evaluation in evaluations_of(results) for column in evaluation.columns)]


def timing_columns(results: dict[str, Any]) -> list[Column[Any]]:
    """All columns, those of a model first."""
    return [*model_columns(results), *TIMING_COLUMNS]


def model_lines(results: dict[str, Any]) -> list[ModelLine]:
    """A line for each row."""
    rows = {row["name"]: row for row in results["rows"]}
    return [ModelLine(row, rows[ORIGINAL]) for row in rows.values()]


def timing_lines(results: dict[str, Any]) -> list[TimingLine]:
    """A line for each timing, in the order of the timings."""
    lines = {line.row["name"]: line for line in model_lines(results)}
    samples = {_key(timing): timing["seconds"] for timing in results["timings"]}
    return [
        TimingLine(
            lines[name].row,
            lines[name].original,
            engine,
            batch,
            length,
            seconds,
            samples[ORIGINAL, engine, batch, length],
            samples.get((name, "hf", batch, length)) if engine == "pyprune" else None,
        )
        for (name, engine, batch, length), seconds in samples.items()
    ]


def table(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The values of the CSV's columns, a dict a timing. `results` as `compare` gives them."""
    columns = shown(timing_columns(results), Table.CSV)
    return [{column.name: column.value(line) for column in columns} for line in timing_lines(results)]


def settings(results: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Each (batch, output_tokens) that was timed, once, in order."""
    yield from dict.fromkeys((timing["batch"], timing["output_tokens"]) for timing in results["timings"])


def engines(results: dict[str, Any]) -> list[str]:
    """The engines that were timed, once each, in order."""
    return list(dict.fromkeys(timing["engine"] for timing in results["timings"]))


def ratios(results: dict[str, Any]) -> list[str]:
    """The pruning ratios of the rows, once each, in order; the original has none."""
    return [ratio for ratio in dict.fromkeys(row["ratio"] for row in results["rows"]) if ratio is not None]


def _key(timing: dict[str, Any]) -> tuple[str, str, int, int]:
    return timing["row"], timing["engine"], timing["batch"], timing["output_tokens"]
