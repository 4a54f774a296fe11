"""The comparison's derived numbers: one line a row, engine, batch and output length, from the results alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pyprune.study.columns import MODEL_COLUMNS, TIMING_COLUMNS, Column, ModelLine, Table, TimingLine, shown
from pyprune.study.evaluations import evaluations_of
from pyprune.study.labels import ORIGINAL

FORMAT = "pyprune-comparison/1"
"""What the results of `compare` call their format."""


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
    """A line for each timing, and for what did not fit into memory: by batch and output length, in the rows' order."""
    lines = {line.row["name"]: line for line in model_lines(results)}
    samples = {_key(timing): timing["seconds"] for timing in results["timings"]}
    short = {_key(entry): entry for entry in results.get("oom", [])}
    keys = list(samples)
    if short:
        rows, settings_ = list(lines), list(dict.fromkeys(key[2:] for key in [*samples, *short]))
        names = engines(results)
        keys = sorted(
            [*samples, *short], key=lambda key: (settings_.index(key[2:]), rows.index(key[0]), names.index(key[1]))
        )
    return [
        TimingLine(
            lines[name].row,
            lines[name].original,
            engine,
            batch,
            length,
            samples.get((name, engine, batch, length), ()),
            samples.get((ORIGINAL, engine, batch, length)),
            samples.get((name, "hf", batch, length)) if engine == "pyprune" else None,
            short.get((name, engine, batch, length)),
        )
        for name, engine, batch, length in keys
    ]


def table(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The values of the CSV's columns, a dict a timing. `results` as `compare` gives them."""
    columns = shown(timing_columns(results), Table.CSV)
    return [{column.name: column.value(line) for column in columns} for line in timing_lines(results)]


def measured(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of `table` that have times."""
    return [line for line in table(results) if line["latency_s"] is not None]


def settings(results: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Each (batch, output_tokens) that was timed, or for which memory was short, once, in order."""
    entries = [*results["timings"], *results.get("oom", [])]
    yield from sorted(dict.fromkeys((entry["batch"], entry["output_tokens"]) for entry in entries), key=_order(results))


def engines(results: dict[str, Any]) -> list[str]:
    """The engines that were timed, or for which memory was short, once each: Hugging Face's first."""
    entries = [*results["timings"], *results.get("oom", [])]
    return sorted(dict.fromkeys(entry["engine"] for entry in entries), key=lambda engine: engine != "hf")


def ratios(results: dict[str, Any]) -> list[str]:
    """The pruning ratios of the rows, once each, in order; the original has none."""
    return [ratio for ratio in dict.fromkeys(row["ratio"] for row in results["rows"]) if ratio is not None]


def _order(results: dict[str, Any]) -> Callable[[tuple[int, int]], tuple[int, int]]:
    """The place of a setting in the order in which they were asked for."""
    batches, lengths = results["settings"]["batches"], results["protocol"]["output_tokens"]

    def place(setting: tuple[int, int]) -> tuple[int, int]:
        batch, length = setting
        return (
            batches.index(batch) if batch in batches else len(batches),
            lengths.index(length) if length in lengths else len(lengths),
        )

    return place


def _key(timing: dict[str, Any]) -> tuple[str, str, int, int]:
    return timing["row"], timing["engine"], timing["batch"], timing["output_tokens"]
