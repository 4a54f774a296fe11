"""The width study: time, bandwidth and FLOP/s of a linear against its width, one width at a time."""

from __future__ import annotations

import csv
import datetime
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyprune.checks import is_int
from pyprune.errors import InputError
from pyprune.files import whole_directory, write_json
from pyprune.models.load import require_device
from pyprune.pruning.apply import padded_width
from pyprune.study import machine
from pyprune.study.destination import require_directory
from pyprune.study.linears import (
    DTYPES,
    OURS,
    PADDED,
    ROLES,
    SIDES,
    TORCH,
    Pool,
    flops,
    our_linear,
    time_calls,
    torch_linear,
    weight_bytes,
)
from pyprune.study.measure import speedup, spread
from pyprune.study.progress import Progress, silent

FORMAT = "pyprune-sweep/1"
ROUNDS = 9
COLUMNS = (
    "role", "width", "padded_width", "rows", "side", "runs", "seconds", "q1", "q3", "bytes_per_s", "flop_per_s",
    "ratio_to_torch", "ratio_low", "ratio_high",
)  # fmt: skip
"""`table`: medians of seconds and quartiles; rates count what the unpadded product needs, whatever the side does.
`ratio_to_torch`: torch's seconds over the side's, paired round by round, with the 95 % interval of its median."""


@dataclass(frozen=True)
class Settings:
    """What is swept: widths [start, stop] by step, against a hidden size, for several numbers of activation rows."""

    start: int
    stop: int
    step: int = 1
    hidden: int = 4096
    rows: tuple[int, ...] = (1, 8, 64, 1024)
    dtype: str = "bfloat16"
    multiple: int = 64
    rounds: int = ROUNDS
    device: str = "cpu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        for name in ("start", "stop", "step", "hidden", "multiple", "rounds"):
            _expect_whole(name, getattr(self, name))
        for count in self.rows:
            _expect_whole("rows", count)
        if not self.rows or len(set(self.rows)) < len(self.rows):
            raise InputError(f"sweep: rows {list(self.rows)}: different numbers of rows are expected")
        if self.stop < self.start:
            raise InputError(f"sweep: widths {self.start}:{self.stop}: the second is expected to be no less")
        if self.dtype not in DTYPES:
            raise InputError(f"sweep: dtype {self.dtype!r}: one of {', '.join(DTYPES)} is expected")

    @property
    def widths(self) -> range:
        return range(self.start, self.stop + 1, self.step)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "rows": list(self.rows)}

    def command(self) -> str:
        """The command line that repeats it."""
        names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
        rows = ",".join(map(str, self.rows))
        return (
            f"pyprune sweep --widths {self.start}:{self.stop}:{self.step} --hidden {self.hidden} --rows {rows} "
            f"--dtype {names[self.dtype]} --multiple {self.multiple} --rounds {self.rounds} --device {self.device}"
        )


Point = dict[str, Any]
"""{"role", "width", "rows", "seconds": {side: [of each round]}}"""


@dataclass(frozen=True)
class Sweep:
    """Its results: settings, machine and every raw sample, as JSON data."""

    results: dict[str, Any]

    def table(self) -> list[dict[str, Any]]:
        """One dict a role, width, number of rows and side (`COLUMNS`)."""
        return table(self.results)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write `sweep.json`, `sweep.csv` and `sweep.png`; the directory appears whole or not at all."""
        render(self.results, directory)


def sweep(settings: Settings, out: str | os.PathLike[str] | None = None, progress: Progress = silent) -> Sweep:
    """Time torch's linear as it is, torch's on the padded weight, and pyprune's, at every width in both roles.

    Widths come in an order drawn from a fixed seed, so that a machine that slows down bends no line; the three sides of
    a width are interleaved. With `out`, the results are written there, and until then kept beside it, point by point:
    the same sweep with the same `out` goes on where it was stopped.
    InputError for bad settings, a directory that is taken, or kept points of another sweep, before anything is timed.
    Source: the paper's Table 1 (widths) and section 4 (pruned models that are slower for their odd sizes).
    """
    target = None if out is None else require_directory(out)
    device, here = require_device(settings.device), machine.describe()
    kept = Kept.open(target, settings, here) if target is not None else Kept.nowhere()
    pool = Pool(settings.hidden, padded_width(settings.stop, settings.multiple), DTYPES[settings.dtype], device)
    todo = [(width, role, rows) for width in settings.widths for role in ROLES for rows in settings.rows]
    random.Random(0).shuffle(todo)
    done = {(point["width"], point["role"], point["rows"]) for point in kept.points}
    for number, (width, role, rows) in enumerate(todo):
        progress("timing", number, len(todo))
        if (width, role, rows) not in done:
            kept.add(_measure(settings, pool, width, role, rows))
    progress("timing", len(todo), len(todo))
    results = {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": settings.command(),
        "settings": settings.to_json(),
        "machine": here,
        "points": sorted(kept.points, key=lambda point: (point["role"], point["rows"], point["width"])),
    }
    result = Sweep(results)
    if target is not None:
        result.save(target)
        kept.remove()
    return result


def _measure(settings: Settings, pool: Pool, width: int, role: str, rows: int) -> Point:
    aligned = padded_width(width, settings.multiple)
    calls: dict[str, Callable[[], object]] = {
        TORCH: torch_linear(pool, role, width, settings.hidden, rows),
        PADDED: torch_linear(pool, role, aligned, settings.hidden, rows),
        OURS: our_linear(pool, role, width, settings.hidden, rows),
    }
    return {"width": width, "role": role, "rows": rows, "seconds": time_calls(calls, settings.rounds, pool.device)}


def table(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The derived table (`COLUMNS`), from the results alone."""
    settings, lines = Settings(**results["settings"]), []
    dtype = DTYPES[settings.dtype]
    for point in results["points"]:
        role, width, rows = point["role"], point["width"], point["rows"]
        work = flops(width, settings.hidden, rows)
        moved = weight_bytes(width, settings.hidden, rows, dtype)
        for side in SIDES:
            seconds = point["seconds"][side]
            found, ratio = spread(seconds), speedup(point["seconds"][TORCH], seconds)
            values = (
                role, width, padded_width(width, settings.multiple), rows, side, found["runs"], found["median"],
                found["q1"], found["q3"], moved / found["median"], work / found["median"],
                ratio["median"], ratio["low"], ratio["high"],
            )  # fmt: skip
            lines.append(dict(zip(COLUMNS, values, strict=True)))
    return lines


def render(results: dict[str, Any], directory: str | os.PathLike[str]) -> None:
    """Write JSON, CSV and the figure, whole or not at all. InputError for a taken directory or another format."""
    from pyprune.study.saw_tooth import saw_tooth

    if results.get("format") != FORMAT:
        raise InputError(f"results of format {results.get('format')!r}: {FORMAT!r} is expected")
    image = saw_tooth(results)
    with whole_directory(directory) as scratch:
        write_json(scratch / "sweep.json", results)
        (scratch / "sweep.png").write_bytes(image)
        with (scratch / "sweep.csv").open("w", encoding="utf-8", newline="") as target:
            writer = csv.DictWriter(target, fieldnames=COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table(results))


class Kept:
    """The points of a sweep under way, a line of JSON each, beside the directory that it will fill."""

    def __init__(self, path: Path | None, points: list[Point]) -> None:
        self.path, self.points = path, points

    @classmethod
    def nowhere(cls) -> Kept:
        return cls(None, [])

    @classmethod
    def open(cls, target: Path, settings: Settings, here: dict[str, Any]) -> Kept:
        """What was kept for `target`, checked against these settings and this machine; a new file where nothing was."""
        path = target.with_name(f".{target.name}.sweep.jsonl")
        header = {"format": FORMAT, "settings": settings.to_json(), "machine": machine.lasting(here)}
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(header) + "\n", encoding="utf-8")
            return cls(path, [])
        first, *rest = path.read_text(encoding="utf-8").split("\n")
        points, complete = [], [first]
        for line in _json_lines(rest):  # a last line that was cut short is timed again
            complete.append(json.dumps(line))
            points.append(line)
        if next(_json_lines([first]), None) != json.loads(json.dumps(header)):
            raise InputError(
                f"{path}: holds points of another sweep, or of another machine or version; the same command as then is "
                "expected, or that the file is removed"
            )
        path.write_text("\n".join(complete) + "\n", encoding="utf-8")
        return cls(path, points)

    def add(self, point: Point) -> None:
        self.points.append(point)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as target:
                target.write(json.dumps(point) + "\n")

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _json_lines(lines: Sequence[str]) -> Iterator[Any]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return


def _expect_whole(name: str, value: object) -> None:
    if not is_int(value) or value < 1:
        raise InputError(f"sweep: {name} {value!r}: a whole number from 1 is expected")
