"""What result files hold of the paper's tables and figures, in one form whatever command wrote them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.study import report
from pyprune.study.labels import unpadded
from pyprune.study.machine import device_name
from pyprune.study.measure import Speedup, speedup
from pyprune.study.paper import facts

GPU_CHECK = ("pyprune-gpu-check/1", "pyprune-gpu-check/2")
FORMATS = (*GPU_CHECK, report.FORMAT)
GROUPS = ("ceilings", "table1", "generations", "layer_peer", "sweep")
"""The check's parts that matter here: of one that is not whole the report says so."""

GENERATION, STEP = "generation", "step"
"""A whole generation from prompt to last token; one replayed decode step in the middle of one."""

Key = tuple[str, str | None, str]
"""method, ratio, layout"""


@dataclass(frozen=True)
class Row:
    """A model of the paper's Table 1. layout: packed, padded (strides), or 64 (the width itself rounded up)."""

    method: str
    ratio: str | None
    layout: str
    bytes_per_token: int
    kv_bytes_per_position: int
    blocks: int
    divisor: int | None = None

    @property
    def key(self) -> Key:
        return self.method, self.ratio, self.layout

    @property
    def name(self) -> str:
        parts = [facts.NAMES[self.method], self.ratio or ""]
        layout = {"packed": "", "padded": ", padded strides", "64": ", widths of multiples of 64"}[self.layout]
        return " ".join(filter(None, parts)) + layout


@dataclass(frozen=True)
class Timing:
    """Raw seconds of one row under one engine; `original`: those of the original that it was paired with, round by
    round."""

    row: Row
    engine: str
    kind: str
    batch: int
    new_tokens: int
    position: int
    seconds: tuple[float, ...]
    original: tuple[float, ...]
    source: str

    @property
    def round_gains(self) -> list[float]:
        """The original's seconds over this row's, round by round; empty where that was not timed beside it."""
        return [original / own for original, own in zip(self.original, self.seconds, strict=False)]

    @property
    def gain(self) -> Speedup | None:
        """`measure.speedup` over the original; None where that was not timed beside it."""
        pairs = min(len(self.seconds), len(self.original))
        return speedup(self.original[:pairs], self.seconds[:pairs]) if pairs else None


@dataclass(frozen=True)
class Peak:
    """The most memory of one row under one engine, bytes; None with the reason where it failed."""

    row: Key
    engine: str
    batch: int
    new_tokens: int
    bytes: int | None
    error: str | None


@dataclass
class Evidence:
    """All that the files hold for one of the paper's models on one device."""

    model: str
    device: str
    dry_run: bool
    sources: list[str]
    bandwidth: float | None = None
    rows: dict[Key, Row] = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)
    peaks: list[Peak] = field(default_factory=list)
    peers: list[dict[str, Any]] = field(default_factory=list)
    sweeps: list[dict[str, Any]] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)

    def timing(
        self, method: str, ratio: str | None, engine: str, kind: str, batch: int = 1, layout: str = "packed",
        new_tokens: int | None = None,
    ) -> Timing | None:  # fmt: skip
        """The timing of that kind with the most runs, of several the latest; of so many new tokens, if that is said."""
        matching = [
            timing
            for timing in self.timings
            if (timing.row.key, timing.engine, timing.kind, timing.batch)
            == ((method, ratio, layout), engine, kind, batch)
            and (new_tokens is None or timing.new_tokens == new_tokens)
        ]
        return max(reversed(matching), key=lambda timing: len(timing.seconds), default=None)

    def batches(self) -> list[int]:
        return sorted({timing.batch for timing in self.timings})


def collect(files: Sequence[str | os.PathLike[str]], data: Sequence[Any]) -> list[Evidence]:
    """The evidence of each of the paper's models, from files of `python -m bench.gpu_check` and of `compare`.

    InputError for another format, for a dry run beside a real one, for two devices, and where nothing of the paper's is
    in any file. Of two timings of one row that with more runs counts, of equal ones the later file's.
    """
    for path, content in zip(files, data, strict=True):
        format_name = content.get("format") if isinstance(content, dict) else None
        if format_name not in FORMATS:
            raise InputError(f"{path}: results of format {format_name!r}; {', '.join(FORMATS)} are accepted")
    dry = {bool(content.get("dry_run")) for content in data}
    if len(dry) > 1:
        raise InputError("report: results of a dry run beside measured ones; one or the other is expected")
    by_model: dict[str, Evidence] = {}
    devices: dict[str, str] = {}
    bandwidth = None
    sweeps: list[dict[str, Any]] = []
    incomplete: list[str] = []
    for path, content in zip(files, data, strict=True):
        name = Path(path).name
        try:
            if content["format"] == report.FORMAT:
                _comparison(content, name, by_model, devices)
                continue
            for part in content["parts"]:
                result = part.get("result") or {}
                bandwidth = result.get("bandwidth") or bandwidth
                if part["status"] != "done" and part["group"] in GROUPS:
                    incomplete.append(
                        f"{name}: {part['name']} {part['status']} ({part.get('why') or 'no reason given'})"
                    )
                if result.get("what") == "width-sweep":
                    sweeps.append(result)
                    devices[result["device"]] = name
                elif result.get("what") in _READERS:
                    evidence = by_model.setdefault(
                        result["model"], Evidence(result["model"], result["device"], dry == {True}, [])
                    )
                    devices[result["device"]] = name
                    if name not in evidence.sources:
                        evidence.sources.append(name)
                    _READERS[result["what"]](result, evidence, name)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise InputError(
                f"{path}: incomplete results of {content['format']} ({type(error).__name__}: {error})"
            ) from None
    if len(devices) > 1:
        listed = ", ".join(f"{device} in {name}" for device, name in devices.items())
        raise InputError(f"report: results of several devices ({listed}); those of one are expected")
    if not by_model and sweeps:
        by_model["llama-7b"] = Evidence("llama-7b", sweeps[0]["device"], dry == {True}, [Path(files[0]).name])
    if not by_model:
        names = ", ".join(facts.MODELS)
        raise InputError(f"report: no file holds rows of the paper's models ({names}) or a width sweep")
    for evidence in by_model.values():
        evidence.bandwidth = bandwidth
        evidence.sweeps, evidence.incomplete = sweeps, incomplete
    return list(by_model.values())


def _rows(result: dict[str, Any], evidence: Evidence) -> dict[str, Row]:
    named = {}
    for entry in result["rows"]:
        row = Row(
            entry["method"], entry["ratio"], entry["layout"], entry["bytes_per_token"], entry["kv_bytes_per_position"],
            entry["blocks"], entry["width_divisor"],
        )  # fmt: skip
        named[entry["name"]] = evidence.rows[row.key] = row
    return named


def _table1(result: dict[str, Any], evidence: Evidence, source: str) -> None:
    rows = _rows(result, evidence)
    for line in result["timings"]:
        evidence.timings.append(
            Timing(
                rows[line["row"]], line["engine"], STEP, line["batch"], result["new_tokens"], result["position"],
                tuple(line["step_seconds"]), tuple(line.get("original_step_seconds", ())), source,
            )
        )  # fmt: skip


def _generations(result: dict[str, Any], evidence: Evidence, source: str) -> None:
    rows = _rows(result, evidence)
    samples = {(line["row"], line["engine"], line["new_tokens"]): line for line in result["timings"]}
    for (name, engine, new), line in samples.items():
        original = samples.get((facts.ORIGINAL, engine, new), {}).get("seconds", [])
        evidence.timings.append(
            Timing(
                rows[name], engine, GENERATION, line["batch"], new, result["prompt_tokens"] + new // 2,
                tuple(line["seconds"]), tuple(original), source,
            )
        )  # fmt: skip
    for line in result["memory"]:
        key = (line["method"], line["ratio"], "packed")
        evidence.peaks.append(
            Peak(key, line["engine"], line["batch"], line["new_tokens"], line.get("peak_bytes"), line.get("error"))
        )


def _layer_peer(result: dict[str, Any], evidence: Evidence, source: str) -> None:
    evidence.peers.append(result)


_READERS = {"table1": _table1, "generations": _generations, "layer-peer": _layer_peer}


def _comparison(results: dict[str, Any], source: str, by_model: dict[str, Evidence], devices: dict[str, str]) -> None:
    """The rows of a comparison whose model is one of the paper's: whole generations at the protocol's lengths."""
    model = results["model"]["name"].removeprefix("shape:")
    if model not in facts.MODELS:
        return
    device = device_name(results["machine"], results["settings"].get("device", "cpu"))
    devices[device] = source
    evidence = by_model.setdefault(model, Evidence(model, device, False, []))
    evidence.sources.append(source)
    rows = {}
    for entry in results["rows"]:
        method = unpadded(entry["method"])
        padded = method != entry["method"]
        if method in facts.NAMES and "oom" not in entry:
            row = Row(
                method, entry["ratio"], "64" if padded else "packed", entry["bytes_per_token"],
                entry.get("kv_bytes_per_position") or 0, entry["blocks"],
            )  # fmt: skip
            rows[entry["name"]] = evidence.rows[row.key] = row
    for line in _paired(results["timings"]):
        if line["row"] in rows:
            new = line["output_tokens"]
            evidence.timings.append(
                Timing(
                    rows[line["row"]], line["engine"], GENERATION, line["batch"], new,
                    results["protocol"]["input_tokens"] + new // 2, tuple(line["seconds"]), tuple(line["original"]),
                    source,
                )
            )  # fmt: skip


def _paired(timings: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    originals = {
        (timing["engine"], timing["batch"], timing["output_tokens"]): timing["seconds"]
        for timing in timings
        if timing["row"] == facts.ORIGINAL
    }
    for timing in timings:
        yield {**timing, "original": originals.get((timing["engine"], timing["batch"], timing["output_tokens"]), [])}
