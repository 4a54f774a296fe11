"""What the command line shows: tables, JSON, and progress with the time left."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any


def is_rank_zero() -> bool:
    """Whether this process is the one that reports and writes, of those that torchrun has started."""
    return int(os.environ.get("RANK", "0")) == 0


class Bar:
    """A `pyprune.study.progress.Progress` with the time left, on a terminal's stderr; elsewhere silent."""

    def __enter__(self) -> Bar:
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        if sys.stderr.isatty() and is_rank_zero():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            left = TextColumn("left{task.fields[note]}")
            # A step of training can take minutes: the speed is taken over many.
            self._bar = Progress(
                *columns, left, console=Console(stderr=True), transient=True, speed_estimate_period=600
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        if self._bar is None:
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total, note="")
        self._bar.update(self._tasks[stage], completed=done, total=total, note=note and f", {note}")


def shown(value: object) -> str:
    """A fact as a person reads it: lists with commas, truth as yes or no."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def console() -> Any:
    """The rich console on stdout."""
    from rich.console import Console

    # Into a file or a pipe, rich assumes 80 columns and would break the tables that are made for 100.
    return Console(width=None if sys.stdout.isatty() else 100)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """A table on stdout; without any header words, a plain list of facts."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=None if title is None else Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        show_header=any(header),
    )  # fmt: skip
    for position, name in enumerate(header):
        table.add_column(Text(name), justify="right" if position and any(header) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def print_json(data: object) -> None:
    """Indented JSON on stdout."""
    print(json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False))
