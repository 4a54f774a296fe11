"""Quality against speed and size over several comparisons: the Pareto front, and which model to take under a limit."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.files import read_json
from pyprune.study import report
from pyprune.study.labels import ORIGINAL
from pyprune.study.machine import lasting
from pyprune.study.table import measured, model_columns, model_lines

FORMAT = "pyprune-frontier/1"
QUALITIES = {"ppl": False, "accuracy": True}
"""The measures of quality, and whether more is better."""


@dataclass(frozen=True)
class Point:
    """One model of a comparison. `quality`: perplexity, or mean accuracy as a share; `latency_ms`: median of the whole
    batch, `latency_q3_ms` its third quartile; `size_mb`: weights in the timed dtype, 10^6 bytes; `fast`, `small`:
    whether it is on the front of quality against latency, and against size; `scale`: what the file's times were
    multiplied by, so that its original takes as long as the first file's."""

    name: str
    method: str
    ratio: str | None
    source: str
    quality: float
    latency_ms: float
    latency_q3_ms: float
    tokens_per_s: float
    size_mb: float
    fast: bool = False
    small: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Frontier:
    """The points of all comparisons under one engine, at one batch and output length, the fastest first. `choice`: the
    best under the limit of `latency_ms` or `size_mb`; None without a limit, and where nothing stays under it."""

    model: str
    engine: str
    batch: int
    output_tokens: int
    quality: str
    points: tuple[Point, ...]
    latency_ms: float | None
    size_mb: float | None
    choice: Point | None
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "format": FORMAT,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **asdict(self),
        }


def frontier(
    files: Sequence[str | os.PathLike[str]],
    *,
    latency_ms: float | None = None,
    size_mb: float | None = None,
    batch: int | None = None,
    output_tokens: int | None = None,
    engine: str = "pyprune",
    quality: str | None = None,
) -> Frontier:
    """The models of one or more comparisons (their results.json, or the directories with it), and the Pareto fronts.

    latency_ms: at most so long for a whole batch; size_mb: at most so many 10^6 bytes of weights; one of them or none.
    With several files, each one's times are scaled so that the original takes as long as in the first, since machines
    are not equally quick in every session; not where one of them could not time the original.
    batch, output_tokens: of the latencies (default: the smallest that all files have). engine: pyprune or hf. quality:
    ppl, or accuracy, the mean over tasks (default: perplexity where all have it).
    InputError for files that are none, comparisons that do not compare (another model, text, tasks, dtype or machine),
    and a batch, length, engine or quality that a file lacks.
    """
    if latency_ms is not None and size_mb is not None:
        raise InputError(f"latency {latency_ms:g} and size {size_mb:g}: one limit is accepted, not both")
    for name, limit in (("latency", latency_ms), ("size", size_mb)):
        if limit is not None and not (math.isfinite(limit) and limit > 0):
            raise InputError(f"{name} {limit}: a number above 0 is expected")
    if quality is not None and quality not in QUALITIES:
        raise InputError(f"quality {quality!r}: {' or '.join(QUALITIES)} is expected")
    comparisons = {str(path): _read(path) for path in files}
    if not comparisons or len(comparisons) < len(files):
        raise InputError("frontier: one or more results are expected, none of them twice")
    quality = quality or _common_quality(comparisons)
    _require_alike(comparisons, quality)
    lines = {path: measured(results) for path, results in comparisons.items()}
    engine = _one_of("engine", engine, lines, lambda line: line["engine"])
    lines = {path: [line for line in file_lines if line["engine"] == engine] for path, file_lines in lines.items()}
    batch = _one_of("batch", batch, lines, lambda line: line["batch"])
    lines = {path: [line for line in file_lines if line["batch"] == batch] for path, file_lines in lines.items()}
    output_tokens = _one_of("output tokens", output_tokens, lines, lambda line: line["output_tokens"])
    lines = {
        path: [line for line in file_lines if line["output_tokens"] == output_tokens]
        for path, file_lines in lines.items()
    }
    scales, unscaled = _scales(lines)
    points: list[Point] = []
    for path, file_lines in lines.items():
        for line in file_lines:
            if line.get(quality) is None:
                continue
            if line["row"] == ORIGINAL and any(point.name == ORIGINAL for point in points):
                continue  # the same model in every file: the first file's times stand for it
            points.append(_point(path, line, quality, comparisons[path], scales[path], len(comparisons) > 1))
    if not points:
        raise InputError(f"frontier: no row has both a finite {quality} and times at batch {batch}")
    more = QUALITIES[quality]
    marked = _marked(points, more)
    within = [point for point in marked if _within(point, latency_ms, size_mb)]
    limited = latency_ms is not None or size_mb is not None
    choice = _best(within, more) if limited and within else None
    front = Frontier(
        next(iter(comparisons.values()))["model"]["name"], engine, batch, output_tokens, quality, tuple(marked),
        latency_ms, size_mb, choice, "",
    )  # fmt: skip
    told = [text for text in (sentence(front), _scaling(scales, unscaled)) if text]
    return Frontier(**{**vars(front), "sentence": " ".join(told)})


def _scales(lines: Mapping[str, list[dict[str, Any]]]) -> tuple[dict[str, float], list[str]]:
    """What each file's times are multiplied by: the first file's original over its own, or 1 everywhere where a file
    has no time of the original; and those files."""
    originals = {
        path: line["latency_s"] for path, file_lines in lines.items() for line in file_lines if line["row"] == ORIGINAL
    }
    missing = [path for path in lines if path not in originals]
    if missing:
        return dict.fromkeys(lines, 1.0), missing
    first = next(iter(originals.values()))
    return {path: first / latency for path, latency in originals.items()}, []


def _scaling(scales: Mapping[str, float], unscaled: Sequence[str]) -> str:
    """How the times of several files were brought together; nothing to say of a single one."""
    first, *others = scales
    if not others:
        return ""
    if unscaled:
        listed = ", ".join(_source(path) for path in unscaled)
        return f"The times of the files are as measured, not scaled to one original: {listed} did not time it."
    listed = ", ".join(f"{_source(path)} by {scales[path]:.3f}" for path in others)
    return f"Times are scaled so that the original takes as long as in {_source(first)}: those of {listed}."


def sentence(front: Frontier) -> str:
    """Which model to take under the limit; without one, the models on the front of latency."""
    setting = f"a batch of {front.batch} and {front.output_tokens} new tokens under {front.engine}"
    if front.latency_ms is None and front.size_mb is None:
        listed = "; ".join(_described(point, front) for point in front.points if point.fast)
        return f"For {setting}, nothing measured is both faster and better than these, the fastest first: {listed}."
    if front.latency_ms is not None:
        limit, smallest = f"{front.latency_ms:g} ms for {setting}", min(front.points, key=lambda p: p.latency_ms)
    else:
        limit, smallest = f"{front.size_mb:g} MB of weights", min(front.points, key=lambda p: p.size_mb)
    if front.choice is None:
        return f"Nothing measured stays within {limit}; the nearest is {_described(smallest, front)}."
    within = sum(_within(point, front.latency_ms, front.size_mb) for point in front.points)
    text = (
        f"Within {limit}, take {_described(front.choice, front)}: the best {_NAMES[front.quality]} of the {within} "
        f"that stay within it, of {len(front.points)} measured."
    )
    if front.latency_ms is not None and front.choice.latency_q3_ms > front.latency_ms:
        text += f" A quarter of its runs took {front.choice.latency_q3_ms:.4g} ms or more, which is beyond the limit."
    return text


_NAMES = {"ppl": "perplexity", "accuracy": "mean accuracy"}


def quality_text(value: float, quality: str) -> str:
    """The quality as a reader sees it."""
    return f"PPL {value:.2f}" if quality == "ppl" else f"accuracy {100 * value:.1f} %"


def _described(point: Point, front: Frontier) -> str:
    quality = quality_text(point.quality, front.quality)
    return f"{point.name} ({quality}, {point.latency_ms:.4g} ms, {point.size_mb:.4g} MB)"


def _within(point: Point, latency_ms: float | None, size_mb: float | None) -> bool:
    return (latency_ms is None or point.latency_ms <= latency_ms) and (size_mb is None or point.size_mb <= size_mb)


def _best(points: Sequence[Point], more: bool) -> Point:
    """Of equal quality the faster."""
    return min(points, key=lambda point: (-point.quality if more else point.quality, point.latency_ms))


def _marked(points: Sequence[Point], more: bool) -> list[Point]:
    """The points, the fastest first, with those on the fronts marked: no other is as good or better in both and better
    in one."""
    fast = pareto([(point.latency_ms, point.quality) for point in points], more)
    small = pareto([(point.size_mb, point.quality) for point in points], more)
    marked = [
        Point(**{**vars(point), "fast": quick, "small": light})
        for point, quick, light in zip(points, fast, small, strict=True)
    ]
    return sorted(marked, key=lambda point: point.latency_ms)


def pareto(pairs: Sequence[tuple[float, float]], more: bool = False) -> list[bool]:
    """Which of these (cost, quality) no other one dominates. Less cost is better; `more`: so is more quality, else
    less."""
    sign = -1 if more else 1
    scaled = [(cost, sign * quality) for cost, quality in pairs]
    return [
        not any(a <= cost and b <= quality and (a, b) != (cost, quality) for a, b in scaled) for cost, quality in scaled
    ]


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    file = Path(path) / report.RESULTS if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise InputError(f"{path}: no results; a directory that compare --out wrote, or its results.json, is expected")
    results = read_json(file)
    name = results.get("format") if isinstance(results, dict) else None
    if not isinstance(results, dict) or name != report.FORMAT:
        raise InputError(f"{path}: results of format {name!r}; {report.FORMAT} of pyprune compare is expected")
    try:
        measured(results)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{path}: incomplete results of {name} ({type(error).__name__}: {error})") from None
    return results


def _common_quality(comparisons: Mapping[str, dict[str, Any]]) -> str:
    for quality in QUALITIES:
        if all(quality in {c.name for c in model_columns(results)} for results in comparisons.values()):
            return quality
    raise InputError("frontier: the results have no measure of quality in common, neither ppl nor accuracy")


def _require_alike(comparisons: Mapping[str, dict[str, Any]], quality: str) -> None:
    """Raise InputError for what cannot be compared, naming the two files and what differs."""
    (first_path, first), *others = comparisons.items()
    for path, results in comparisons.items():
        if quality not in {column.name for column in model_columns(results)}:
            raise InputError(f"{path}: has no {quality}")
    for path, results in others:
        known = all("kernels" in one["machine"] for one in (results, first))  # older results do not name them
        subjects = (_subject(one, quality, known) for one in (results, first))
        for what, value, expected in zip(_SUBJECT, *subjects, strict=True):
            if value != expected:
                raise InputError(f"{path}: has another {what} than {first_path}; the same is expected")


_SUBJECT = ("model", "dtype", "device", "number of input tokens", "text or task", "machine, version or kernels")


def _subject(results: dict[str, Any], quality: str, kernels: bool) -> tuple[Any, ...]:
    settings = results["settings"]
    measure = results["evaluation"]["sha256"] if quality == "ppl" else results["evaluations"]["accuracy"]
    left_out = {"commit"} if kernels else {"commit", "kernels"}
    here = {name: value for name, value in lasting(results["machine"]).items() if name not in left_out}
    return (
        (results["model"]["name"], results["model"]["parameters"]), settings["dtype"], settings.get("device", "cpu"),
        results["protocol"]["input_tokens"], measure, here,
    )  # fmt: skip


def _one_of(
    what: str, value: Any, lines: Mapping[str, list[dict[str, Any]]], of: Callable[[dict[str, Any]], Any]
) -> Any:
    """The value, if every file has it; the smallest that all have when None."""
    common = set.intersection(*({of(line) for line in own} for own in lines.values()))
    if value is None and common:
        return min(common)
    if value not in common:
        listed = ", ".join(map(str, sorted(common))) or "none"
        raise InputError(f"{what} {value}: not timed in every file; all files have {listed}")
    return value


def _source(path: str) -> str:
    """A file's name for a reader: its own, or its directory's where that is what compare wrote."""
    return Path(path).parent.name if Path(path).name == report.RESULTS else Path(path).stem


def _point(
    path: str, line: dict[str, Any], quality: str, results: dict[str, Any], scale: float, several: bool
) -> Point:
    sizes = next(entry.row for entry in model_lines(results) if entry.row["name"] == line["row"])
    # Older results do not say it.
    size = sizes.get("bytes") or sizes["parameters"] * _ITEM_BYTES[results["settings"]["dtype"]]
    source = _source(path)
    name = line["row"] if line["row"] == ORIGINAL or not several else f"{line['row']} [{source}]"
    return Point(
        name, line["method"], line["ratio"], source, line[quality], 1000 * scale * line["latency_s"],
        1000 * scale * line["latency_q3_s"], line["tokens_per_s"] / scale, size / 1e6, scale=scale,
    )  # fmt: skip


_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
