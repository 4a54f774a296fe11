"""Accuracy on tasks of lm-eval, zero-shot."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from pyprune.errors import InputError
from pyprune.evaluation.paper_tasks import PAPER_TASKS
from pyprune.evaluation.tasks import evaluate_tasks, require_tasks
from pyprune.models.decoder import Decoder
from pyprune.study.columns import Column, ModelLine, Table
from pyprune.study.evaluations.evaluation import Material, Need
from pyprune.study.labels import unpadded

HEADERS = {
    "boolq": "BoolQ", "piqa": "PIQA", "hellaswag": "HellaS.", "winogrande": "WinoG.", "arc_easy": "ARC-e",
    "arc_challenge": "ARC-c", "openbookqa": "OBQA",
}  # fmt: skip


@dataclass(frozen=True)
class Accuracy:
    """`accuracy`: what lm-eval measures of each task; the columns give one metric of each, and their mean.

    tasks: lm-eval's names, or "paper" for the paper's seven. limit: documents a task. data: a directory of them. The
    metric is the paper's (`acc_norm` for HellaSwag, ARC-c and OBQA, else `acc`), of other tasks `acc`.
    """

    tasks: tuple[str, ...]
    limit: int | None = None
    data: str | None = None
    name: ClassVar[str] = "accuracy"
    needs: ClassVar[frozenset[Need]] = frozenset({"tokenizer"})

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.tasks)) < len(self.tasks) or "" in self.tasks:
            raise InputError(f"tasks {', '.join(self.tasks) or 'none'}: one or more different names are expected")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit {self.limit}: a number of documents from 1 is expected")

    @classmethod
    def of(cls, tasks: Sequence[str], limit: int | None = None, data: str | None = None) -> Accuracy:
        """From its settings."""
        return cls(tuple(tasks), limit, data)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The names, those of "paper" one by one."""
        return tuple(dict.fromkeys(n for name in self.tasks for n in (PAPER_TASKS if name == "paper" else (name,))))

    @property
    def columns(self) -> tuple[Column[ModelLine], ...]:
        mean: Column[ModelLine] = Column("accuracy", "acc.", _percent, self._mean, Table.CSV | Table.MODELS)
        columns = [mean]
        for task in self.task_names:
            header = HEADERS.get(task, task)
            columns.append(Column(f"{task}_accuracy", header, _percent, partial(_value, task), Table.CSV))
            columns.append(Column(f"{task}_stderr", f"{header} ±", _percent, partial(_stderr, task), Table.CSV))
            columns.append(Column(task, header, _with_error, partial(_both, task), Table.TASKS))
        return tuple(columns)

    def check(self) -> None:
        require_tasks(list(self.tasks), data=self.data, limit=self.limit)

    def evaluate(self, name: str, decoder: Decoder, material: Material) -> dict[str, Any]:
        def progress(stage: str, done: int, total: int) -> None:
            material.progress(f"{stage}, {name}", done, total)

        results = evaluate_tasks(
            decoder, material.tokenizer, list(self.tasks), limit=self.limit, data=self.data, progress=progress,
            resume=material.journal(name),
        )  # fmt: skip
        return {"accuracy": results}

    def findings(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Which row keeps the highest mean accuracy, and what two standard errors leave open."""
        shown = [row for row in rows if unpadded(row["method"]) == row["method"]]  # padded ones are the same models
        means = {row["name"]: _mean_of(row, self.task_names) for row in shown}
        known = {name: mean for name, mean in means.items() if mean is not None}
        if len(known) < 2:
            return []
        mean, error = max(known.values())
        best = [name for name, (value, _) in known.items() if value == mean]
        others = [name for name in known if name not in best]
        near = [name for name in others if mean - known[name][0] <= 2 * (error**2 + known[name][1] ** 2) ** 0.5]
        count = f"{len(self.task_names)} {'task' if len(self.task_names) == 1 else 'tasks'}"
        verb = "has" if len(best) == 1 else "share"
        text = f"At {rows[0]['ratio']}, {' and '.join(best)} {verb} the highest mean accuracy over {count}, "
        text += f"{100 * mean:.1f} %"
        if others:
            text += f" ({', '.join(f'{100 * known[name][0]:.1f} for {name}' for name in others)}"
            text += f"; within two standard errors of it: {', '.join(near) or 'none of these'})"
        return [text + "."]

    def settings(self) -> dict[str, Any]:
        data = None if self.data is None else os.path.basename(os.path.abspath(self.data))
        return {"tasks": list(self.tasks), "limit": self.limit, "data": data}

    def argv(self) -> list[str]:
        settings = self.settings()
        words = ["--tasks", ",".join(self.tasks)]
        for name in ("limit", "data"):
            words += [] if settings[name] is None else [f"--{name}", str(settings[name])]
        return words

    def _mean(self, line: ModelLine) -> float | None:
        mean = _mean_of(line.row, self.task_names)
        return None if mean is None else mean[0]


def metric_of(task: str) -> str:
    """The metric that stands for a task."""
    return PAPER_TASKS[task].metric if task in PAPER_TASKS else "acc"


def mean_accuracy(results: Mapping[str, Any]) -> tuple[float, float] | None:
    """Mean over the tasks of results, as `evaluate_tasks` gives them, and its standard error."""
    return _mean_of({"accuracy": results}, list(results))


def _mean_of(row: Mapping[str, Any], tasks: Sequence[str]) -> tuple[float, float] | None:
    """Mean over the tasks and its standard error, the tasks being independent; None where one has no figure."""
    values = [_figure(row, task) for task in tasks]
    errors = [_figure(row, task, "_stderr") or 0.0 for task in tasks]
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return sum(known) / len(known), sum(error**2 for error in errors) ** 0.5 / len(errors)


def _figure(row: Mapping[str, Any], task: str, suffix: str = "") -> float | None:
    return row.get("accuracy", {}).get(task, {}).get(metric_of(task) + suffix)


def _value(task: str, line: ModelLine) -> float | None:
    return _figure(line.row, task)


def _stderr(task: str, line: ModelLine) -> float | None:
    return _figure(line.row, task, "_stderr")


def _both(task: str, line: ModelLine) -> tuple[float, float | None] | None:
    value = _figure(line.row, task)
    return None if value is None else (value, _figure(line.row, task, "_stderr"))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _with_error(both: tuple[float, float | None] | None) -> str:
    if both is None:
        return ""
    value, error = both
    return _percent(value) if error is None else f"{100 * value:.1f} ±{100 * error:.1f}"
