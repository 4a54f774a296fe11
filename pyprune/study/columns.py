"""The columns of a comparison: each says its name, header, format, value, and in which tables it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from functools import cached_property
from typing import Any, Generic, TypeVar

from pyprune.study.measure import Speedup, SpeedupKey, Spread, SpreadKey, speedup, spread


class Table(Flag):
    """Where a column is shown. On the screen, columns of an engine are repeated for each engine of a row."""

    CSV = auto()
    MODELS = auto()
    TASKS = auto()
    TIMINGS = auto()
    SCREEN = auto()
    SCREEN_ENGINE = auto()


@dataclass(frozen=True)
class ModelLine:
    """A model of the comparison and the original, as entries of the results' rows."""

    row: Mapping[str, Any]
    original: Mapping[str, Any]


@dataclass(frozen=True)
class TimingLine(ModelLine):
    """A model's runs under one engine, at one batch size and output length, and those it is compared with.

    Seconds of the whole batch, a run each, none where it did not fit into memory (`oom` has the figures);
    `original_seconds`: None where that is so of the original; `hf_seconds`: the same row under Hugging Face where this
    is pyprune's, or None.
    """

    engine: str
    batch: int
    output_tokens: int
    seconds: Sequence[float]
    original_seconds: Sequence[float] | None
    hf_seconds: Sequence[float] | None
    oom: Mapping[str, Any] | None = None

    @cached_property
    def latency(self) -> Spread | None:
        """`measure.spread` of the seconds; None where there are none."""
        return spread(self.seconds) if self.seconds else None

    @cached_property
    def gain(self) -> Speedup | None:
        """`measure.speedup` over the original under the same engine; None where one of them has no seconds."""
        return speedup(self.original_seconds, self.seconds) if self.original_seconds and self.seconds else None

    @cached_property
    def over_hf(self) -> Speedup | None:
        """`measure.speedup` over the same row under Hugging Face; None where one of them has no seconds."""
        return speedup(self.hf_seconds, self.seconds) if self.hf_seconds and self.seconds else None


LineT = TypeVar("LineT", bound=ModelLine)


@dataclass(frozen=True)
class Column(Generic[LineT]):
    """One column. `value` takes it from a line, as JSON data; `format` writes it for a reader, who sees `header`
    ("{engine}" in it is the engine's name)."""

    name: str
    header: str
    format: Callable[[Any], str]
    value: Callable[[LineT], Any]
    tables: Table


def entry(name: str) -> Callable[[ModelLine], Any]:
    """The value that the row has under that key."""
    return lambda line: line.row.get(name)


def latency(name: SpreadKey) -> Callable[[TimingLine], Any]:
    return lambda line: None if line.latency is None else line.latency[name]


def gain(name: SpeedupKey) -> Callable[[TimingLine], Any]:
    return lambda line: None if line.gain is None else line.gain[name]


def over_hf(name: SpeedupKey) -> Callable[[TimingLine], Any]:
    return lambda line: None if line.over_hf is None else line.over_hf[name]


def times(value: float | None) -> str:
    """A ratio; nothing where there is none."""
    return "" if value is None else f"{value:.2f}x"


def significant(value: float | None) -> str:
    """Three significant digits, zeros among them: what a few runs allow."""
    return "" if value is None else _digits(value, 3)


def _digits(value: float, count: int) -> str:
    """So many significant digits, and all of those before the point."""
    return f"{value:.0f}" if abs(value) >= 10**count else f"{value:#.{count}g}".rstrip(".")


def millions(value: float) -> str:
    return f"{value / 1e6:.2f}"


def short(value: float | None) -> str:
    """Four digits where there are that many before the point, else up to one after it."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def perplexity(value: float | None) -> str:
    """Four significant digits."""
    if value is None:
        return "not finite"
    return _digits(value, 4) if value < 1e4 else f"{value:.2e}"


OOM = "OOM"
"""Stands where a row, or a batch of it, did not fit into memory."""


def planned(bytes_: float) -> str:
    """Out of memory, with what the planner says was asked for."""
    return f"{OOM} {bytes_ / 2**30:.3g} GiB"


def _half_range(line: TimingLine) -> tuple[float, float] | float:
    """Median latency in milliseconds, and half of the runs' range in percent of it; the planned bytes without any."""
    spread_ = line.latency
    if spread_ is None:
        return _planned_bytes(line) or 0
    return 1000 * spread_["median"], 50 * (spread_["max"] - spread_["min"]) / spread_["median"]


def _latency_cell(pair: tuple[float, float] | float) -> str:
    return f"{short(pair[0])} ±{pair[1]:.0f}%" if isinstance(pair, tuple) else planned(pair)


def _planned_bytes(line: TimingLine) -> int | None:
    return None if line.oom is None else line.oom["planned_bytes"]


def _range(line: TimingLine) -> tuple[float, float] | float:
    return (line.latency["min"], line.latency["max"]) if line.latency else _planned_bytes(line) or 0


def _range_cell(ends: tuple[float, float] | float) -> str:
    return f"{significant(ends[0])} to {significant(ends[1])}" if isinstance(ends, tuple) else planned(ends)


def _rate(line: TimingLine) -> float | None:
    return line.batch * line.output_tokens / line.latency["median"] if line.latency else None


MODEL_COLUMNS: tuple[Column[ModelLine], ...] = (
    Column("row", "row", str, entry("name"), Table.CSV | Table.MODELS | Table.TIMINGS | Table.SCREEN),
    Column("method", "method", str, entry("method"), Table.CSV),
    Column("ratio", "ratio", str, entry("ratio"), Table.CSV),
    Column("parameters", "M params", millions, entry("parameters"), Table.CSV | Table.MODELS),
    Column("removed_share", "removed", "{:.1%}".format, entry("removed_share"), Table.CSV | Table.MODELS),
    Column("blocks", "blocks", str, entry("blocks"), Table.CSV | Table.MODELS),
    Column("ffn_width", "FFN width", str, entry("ffn_width"), Table.CSV | Table.MODELS),
    Column("heads", "heads", str, entry("heads"), Table.CSV),
    Column("kv_heads", "KV heads", str, entry("kv_heads"), Table.CSV),
    Column(
        "heads_and_kv", "heads (KV)", str, lambda line: f"{line.row['heads']} ({line.row['kv_heads']})", Table.MODELS
    ),
    Column("bytes_per_token", "MB/token", millions, entry("bytes_per_token"), Table.CSV | Table.MODELS),
    Column("bytes", "MB", millions, entry("bytes"), Table.CSV),
    Column("kv_bytes_per_position", "KV bytes/position", str, entry("kv_bytes_per_position"), Table.CSV),
)
"""What is known of a model before any evaluation. The evaluations' own columns follow."""

TIMING_COLUMNS: tuple[Column[TimingLine], ...] = (
    Column("engine", "engine", str, lambda line: line.engine, Table.CSV | Table.TIMINGS),
    Column("batch", "M", str, lambda line: line.batch, Table.CSV | Table.TIMINGS),
    Column("output_tokens", "L", str, lambda line: line.output_tokens, Table.CSV | Table.TIMINGS),
    Column("runs", "runs", str, latency("runs"), Table.CSV | Table.TIMINGS),
    Column("latency_s", "latency (s)", significant, latency("median"), Table.CSV | Table.TIMINGS),
    Column(
        "range", "range (s)", _range_cell, _range, Table.TIMINGS,
    ),
    Column(
        "latency_ms", "{engine} ms", _latency_cell, _half_range, Table.SCREEN_ENGINE
    ),
    Column("latency_q1_s", "q1 (s)", significant, latency("q1"), Table.CSV),
    Column("latency_q3_s", "q3 (s)", significant, latency("q3"), Table.CSV),
    Column("latency_min_s", "min (s)", significant, latency("min"), Table.CSV),
    Column("latency_max_s", "max (s)", significant, latency("max"), Table.CSV),
    Column("latency_mean_s", "mean (s)", significant, latency("mean"), Table.CSV),
    Column(
        "tokens_per_s", "tok/s", short, _rate,
        Table.CSV | Table.TIMINGS | Table.SCREEN_ENGINE,
    ),
    Column("speedup", "speed-up", times, gain("median"), Table.CSV | Table.TIMINGS | Table.SCREEN_ENGINE),
    Column("speedup_q1", "q1", times, gain("q1"), Table.CSV),
    Column("speedup_q3", "q3", times, gain("q3"), Table.CSV),
    Column("speedup_low", "low", times, gain("low"), Table.CSV),
    Column("speedup_high", "high", times, gain("high"), Table.CSV),
    Column(
        "speedup_by_bytes", "by bytes", times,
        lambda line: line.original["bytes_per_token"] / line.row["bytes_per_token"],
        Table.CSV | Table.TIMINGS | Table.SCREEN,
    ),
    Column("oom_planned_bytes", "planned", significant, _planned_bytes, Table.CSV),
    Column("pyprune_vs_hf", "over hf", times, over_hf("median"), Table.CSV | Table.TIMINGS | Table.SCREEN),
    Column("pyprune_vs_hf_low", "low", times, over_hf("low"), Table.CSV),
    Column("pyprune_vs_hf_high", "high", times, over_hf("high"), Table.CSV),
)  # fmt: skip
"""What is measured of a row under an engine. Latency is that of the whole batch; `speedup` is over the original under
the same engine, paired round by round, `speedup_low` to `speedup_high` a 95 % interval of its median (None below 6
runs); `pyprune_vs_hf` is Hugging Face's latency over ours for the same row, likewise. Where a row did not fit into
memory there is nothing but `oom_planned_bytes`, the planner's figure."""


def shown(columns: Sequence[Column[LineT]], table: Table) -> list[Column[LineT]]:
    """The columns that stand in that table."""
    return [column for column in columns if table in column.tables]


def cells(columns: Sequence[Column[LineT]], lines: Sequence[LineT]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, as text."""
    header = [column.header for column in columns]
    return header, [[_cell(column, line) for column in columns] for line in lines]


def _cell(column: Column[LineT], line: LineT) -> str:
    value = column.value(line)
    if value is None and "oom" in line.row:  # of such a model nothing was measured
        return OOM
    return column.format(value)
