"""`recipe`: one experiment of the paper, or of the user's own, from end to end on one model."""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from pyprune.errors import InputError
from pyprune.evaluation.evaluate import described
from pyprune.evaluation.tasks import Tasks, require_tasks
from pyprune.models import load
from pyprune.models.decoder import Decoder
from pyprune.models.load import load_sizes, require_device
from pyprune.models.shapes import PREFIX
from pyprune.models.sizes import BlockSizes
from pyprune.pruning import Pruning
from pyprune.pruning.amount import parse_amount
from pyprune.pruning.apply import apply
from pyprune.pruning.width import dry_run
from pyprune.recovery.methods import chain_of, require_foldable
from pyprune.recovery.methods import require_samples as require_windows
from pyprune.retraining.adapters import require_extra
from pyprune.retraining.iterated import Iterated
from pyprune.retraining.train import require_one_process
from pyprune.scoring.scores import Scores
from pyprune.scoring.searches.candidates import Candidates
from pyprune.study import machine
from pyprune.study.compare import public_model_name
from pyprune.study.depth_choice import ONE_SHOT, DepthChoice
from pyprune.study.destination import require_directory
from pyprune.study.labels import ORIGINAL
from pyprune.study.progress import Progress, silent
from pyprune.study.recipes.budget import Budget
from pyprune.study.recipes.iterating import iterated
from pyprune.study.recipes.measuring import (
    Values,
    accuracies_of,
    accuracy_values,
    memory_of,
    perplexity_of,
    sizes_of,
    speed_values,
    texts_of,
    timings_of,
)
from pyprune.study.recipes.models import Models
from pyprune.study.recipes.names import BUDGETS
from pyprune.study.recipes.paper_numbers import check_paper, paper_number
from pyprune.study.recipes.plan import Plan, forward_rate, plan
from pyprune.study.recipes.recipe import DEPTH, ITERATIVE, Model, Prune, Recipe, read_recipe
from pyprune.study.recipes.report import FORMAT, save
from pyprune.study.recipes.store import Store, content_key
from pyprune.study.recipes.texts import RecipeTexts, held_out_windows, read_texts, tasks_in_training
from pyprune.study.recipes.training import require_samples
from pyprune.study.recipes.values import shown_setting
from pyprune.study.requirements import prompts_from
from pyprune.study.room import Room
from pyprune.study.rows import Row, pruned_row

UNFINISHED = ".unfinished"


class RecipeResult:
    """What a recipe measured: `results` is JSON data with every raw number, the texts, the machine and the paper's."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.results = results

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write results.json, table.csv, table.md, figures and index.html; results.json first."""
        save(self.results, directory)


def recipe(
    name: str | os.PathLike[str],
    model: Any,
    budget: str = "quick",
    *,
    out: str | os.PathLike[str] | None = None,
    store: str | os.PathLike[str] | None = None,
    resume: bool = False,
    texts: Mapping[str, str] | None = None,
    data: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    announce: Callable[[Plan], bool | None] | None = None,
    progress: Progress = silent,
) -> RecipeResult | None:
    """Run a recipe: prune, repair and retrain the model as its rows say, measure, and set the paper's numbers beside.

    name: a shipped recipe (`pyprune recipe --list`) or a TOML file. model: as in `pyprune.load`. budget: "quick" or
    "paper". out: a new directory for results.json, table, figures and page. store: a folder in which finished work is
    kept for other recipes (default: OUT.unfinished, removed at the end). resume: go on from what an interrupted run
    left there. texts: role or held-out name -> text, in place of the budget's. data: local data of the tasks, as in
    `pyprune.evaluate`. announce: called with the plan before the slow part; where it returns False nothing is done and
    the result is None.
    Raises InputError before the slow part for a recipe, budget, text, task or model that does not do.
    """
    chosen = read_recipe(name)
    if budget not in BUDGETS:
        raise InputError(f"budget {budget!r}: {' or '.join(BUDGETS)} is expected")
    settings = chosen.budgets[budget]
    _check_repairs(chosen, settings)
    folder = _folder(out, store, resume)
    check_paper(chosen)
    place = require_device(device)
    trains = any(_is_iterative(row) or (row.retrain and settings.steps != 0) for row in chosen.models)
    if trains:
        require_extra()
        require_one_process("recipe")
    sizes = described(model)
    if sizes is not None:
        _check_model(chosen, sizes, settings, trains)
    tasks = require_tasks(chosen.measures.tasks, data=data, limit=settings.limit) if chosen.measures.tasks else None
    random = isinstance(model, (str, os.PathLike)) and os.fspath(model).startswith(PREFIX)
    read = read_texts(settings, texts or {}, random, trains)
    progress("loading", 0, 1)
    decoder = load(model, device=place)
    progress("loading", 1, 1)
    _check_model(chosen, decoder, settings, trains)
    planned = plan(chosen, settings, decoder, forward_rate(decoder), tasks, len(read.held_out))
    if announce is not None and announce(planned) is False:
        return None
    with _opened(folder) as kept:
        run = _Run(chosen, settings, decoder, read, tasks, kept, progress)
        results = {
            **_subject(chosen, decoder, settings, read),
            "command": _command(name, model, decoder, budget, texts or {}, data),
            **run.results(),
            "planned": planned.to_json(),
            "seconds": dict(sorted(kept.seconds.items())),
        }
        result = RecipeResult(results)
        if out is not None:
            result.save(out)
        if store is None:
            kept.remove()
        return result


def _folder(out: Any, store: Any, resume: bool) -> Path | None:
    """Where finished work is kept; None where nothing says so. InputError for what an interrupted run left there."""
    if out is not None:
        require_directory(out)
    if store is not None:
        return Path(store)
    if out is None:
        if resume:
            raise InputError("--resume: finished work is kept beside --out or in --store; neither was given")
        return None
    target = Path(out).absolute()
    folder = target.with_name(target.name + UNFINISHED)
    if folder.exists() and not resume:
        raise InputError(f"{folder}: left by an interrupted recipe; --resume continues it, or remove it to begin again")
    return folder


@contextlib.contextmanager
def _opened(folder: Path | None) -> Iterator[Store]:
    if folder is not None:
        yield Store(folder)
    else:
        with tempfile.TemporaryDirectory(prefix="pyprune-recipe-") as scratch:
            yield Store(scratch)


def _check_model(chosen: Recipe, decoder: Decoder, budget: Budget, trains: bool) -> None:
    """Raise InputError where the model cannot take what is measured, or trained on."""
    if (chosen.measures.tasks or chosen.measures.samples) and decoder.tokenizer_source is None:
        what = "tasks" if chosen.measures.tasks else "samples"
        raise InputError(f"{decoder.name}: has no tokenizer, which {what} of recipe {chosen.name} need")
    speed = chosen.measures.speed
    lengths = [budget.seq_len, budget.window, *([budget.cutoff] if trains else [])]
    if speed is not None:
        lengths.append(max(speed.input_tokens) + max(speed.output_tokens or budget.output_tokens))
    if chosen.measures.memory is not None:
        lengths.append(chosen.measures.memory.input_tokens + max(chosen.measures.memory.output_tokens))
    for model in chosen.models:
        if model.prune is not None:
            _check_prune(decoder, model.prune, f"recipe {chosen.name}, {model.name}")
    if max(lengths) > decoder.max_positions:
        raise InputError(
            f"{decoder.name}: a context of {decoder.max_positions} tokens; recipe {chosen.name} with budget "
            f"{budget.name} needs {max(lengths)}"
        )


def _check_repairs(chosen: Recipe, budget: Budget) -> None:
    """Raise InputError for repairs that take more windows than the budget has."""
    for model in chosen.models:
        if model.repair is not None:
            try:
                require_windows(budget.repair_samples, chain_of(model.repair), "auto")
            except InputError as error:
                raise InputError(
                    f"recipe {chosen.name}, {model.name}: repair_samples of budget {budget.name}: {error}"
                ) from None


def _check_prune(decoder: Decoder, prune: Prune, where: str) -> None:
    """Raise InputError where the model has no such pruning."""
    amount = parse_amount(prune.amount)
    try:
        if prune.method == DEPTH:
            Candidates.of(decoder, prune.unit, prune.choice.protected, amount.count, amount.ratio)
        else:
            dry_run(decoder, prune.method, ratio=amount.ratio, variant=prune.variant)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _subject(chosen: Recipe, decoder: Decoder, budget: Budget, texts: RecipeTexts) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "recipe": chosen.content(),
        "budget": budget.to_json(),
        "paper_budget": chosen.budgets["paper"].to_json(),
        "model": {
            "name": public_model_name(decoder.name),
            "parameters": decoder.parameters(),
            "blocks": len(decoder.blocks),
        },
        "texts": texts.described(),
        "compared": texts.compared(),
        "left_out": list(texts.left_out),
        "machine": machine.describe(),
        "device": decoder.device.type,
    }


def _command(name: Any, model: Any, decoder: Decoder, budget: str, texts: Mapping[str, str], data: Any) -> str:
    """The command that repeats it, without the folders of absolute paths."""
    named = os.fspath(model) if isinstance(model, (str, os.PathLike)) else decoder.name
    words = ["pyprune", "recipe", public_model_name(os.fspath(name)), public_model_name(named), "--budget", budget]
    for role, text in texts.items():
        words += ["--text", f"{role}={public_model_name(text)}"]
    words += [] if data is None else ["--data", public_model_name(os.fspath(data))]
    words += [] if decoder.device.type == "cpu" else ["--device", str(decoder.device)]
    return shlex.join(words)


class _Run:
    """One run: the models and what is measured of them, each piece from the store where it is there."""

    def __init__(
        self,
        chosen: Recipe,
        budget: Budget,
        decoder: Decoder,
        texts: RecipeTexts,
        tasks: Tasks | None,
        store: Store,
        progress: Progress,
    ) -> None:
        self._recipe, self._budget, self._decoder, self._texts = chosen, budget, decoder, texts
        self._tasks, self._store, self._progress = tasks, store, progress
        self._models = Models(decoder, texts, budget, store, progress)
        if texts.trains:
            require_samples(decoder, texts, budget, self._models.tokenizer)
        self._sizes = load_sizes(decoder, budget.dtype)
        self._held_out = {}
        if chosen.measures.perplexity or chosen.measures.speed is not None:
            self._held_out = {
                name: held_out_windows(decoder, self._models.tokenizer, texts, name, budget) for name in texts.held_out
            }

    def results(self) -> dict[str, Any]:
        self._require_foldable()
        rows = [self._row(model) for model in self._recipe.models]
        scores = [self._scores(criterion).to_dict() for criterion in self._recipe.measures.scores]
        timings = self._timings()
        self._add_speeds(rows, timings)
        for model, row in zip(self._recipe.models, rows, strict=True):
            columns = {c.value: paper_number(self._recipe, model, c) for c in self._recipe.columns}
            row["paper"] = {value: number for value, number in columns.items() if number is not None}
        return {
            "rows": rows,
            "held_out": {
                name: {**windows.description(), "has_unk": self._texts.has_unknown_words(name)}
                for name, windows in self._held_out.items()
            },
            "calibration": self._models.used_windows(),
            "timings": timings,
            "scores": scores,
            "tasks_in_training": {} if self._tasks is None else tasks_in_training(
                self._texts.training, self._tasks.local
            ),
        }  # fmt: skip

    def _require_foldable(self) -> None:
        """Choose what the repaired rows remove, and raise InputError where a repair has nowhere to fold it into."""
        for model in self._recipe.models:
            if model.prune is not None and model.repair is not None:
                pruned = apply(self._sizes, self._models.pruning(model.prune))
                for method in chain_of(model.repair):
                    try:
                        require_foldable(self._sizes, pruned, method)
                    except InputError as error:
                        raise InputError(f"recipe {self._recipe.name}, {model.name}: {error}") from None

    def _scores(self, criterion: str) -> Scores:
        return self._models.scores(DepthChoice(DEPTH, criterion, "block", None, ONE_SHOT), None)

    def _row(self, model: Model) -> dict[str, Any]:
        """Names, sizes and quality of a row."""
        if _is_iterative(model):
            return self._iterated_row(model)
        measures, lazy = self._recipe.measures, _Lazy(self._models, model)
        content = {"model": self._models.content(model), "dtype": self._budget.dtype}
        sizes = self._sizes if model.prune is None else apply(self._sizes, self._models.pruning(model.prune))
        values: Values = sizes_of(sizes, self._sizes)
        errors: Values = {}
        losses: Values = {}
        if measures.memory is not None:
            values |= memory_of(sizes, measures.memory, self._decoder.device.type)
        if measures.perplexity:
            for name, windows in self._held_out.items():
                measured = self._store.part(
                    "perplexity",
                    {**content, "windows": windows.description()},
                    partial(self._perplexity, lazy, name),
                )
                values[f"ppl:{name}"], errors[f"ppl:{name}"] = measured["value"], measured["stderr"]
                losses[f"ppl:{name}"] = {"nll": measured["nll"], "tokens": measured["tokens"]}
            first = f"ppl:{next(iter(self._held_out))}"
            values["ppl"], errors["ppl"], losses["ppl"] = values[first], errors[first], losses[first]
        tasks_data: dict[str, Any] = {}
        for name in () if self._tasks is None else self._tasks.names:
            tasks_data |= self._store.part(
                "task", {**content, **self._task_content(name)}, partial(self._accuracy, lazy, name)
            )
        if tasks_data:
            of_tasks, their_errors = accuracy_values(tasks_data)
            values, errors = values | of_tasks, errors | their_errors
        row = {
            **_labels(model),
            "retrained": self._models.trains(model),
            "key": content_key(content["model"]),
            "removed": None if model.prune is None else _removed(self._models.pruning(model.prune)),
            "values": values,
            "errors": errors,
            "losses": losses,
            "intervals": {},
            "tasks": tasks_data,
        }
        if measures.samples:
            budget = self._budget
            drawn = {"draws": budget.draws, "new_tokens": budget.new_tokens, "seed": budget.seed}
            written = self._store.part("samples", {**content, **drawn}, partial(self._written, lazy))
            row["samples"] = {**written, "model": {**written["model"], "name": model.name}}
            values["repeated_4grams"] = written["model"]["repeated_4grams"]
            errors["repeated_4grams"] = written["model"].get("repeated_4grams_stderr")
        row["made"] = self._models.about(model)
        return row

    @cached_property
    def _iterated(self) -> Iterated:
        """The rounds, as many as the longest row has."""
        prunes = [model.prune for model in self._recipe.models if model.prune is not None and _is_iterative(model)]
        count = max(_count(prune) for prune in prunes)
        return iterated(
            self._decoder, self._models.tokenizer, self._models.identity, prunes[0], count,
            self._models.windows(prunes[0].samples), next(iter(self._held_out.values())), self._texts, self._budget,
            self._store, self._progress,
        )  # fmt: skip

    def _iterated_row(self, model: Model) -> dict[str, Any]:
        """A row of an iterative pruning: the perplexity on the first held-out text alone, before or after the last
        training."""
        assert model.prune is not None
        rounds = self._iterated.rounds[: _count(model.prune)]
        last = rounds[-1]
        perplexity = last.retrained if model.retrain else last.perplexity
        finite = perplexity if math.isfinite(perplexity) else None
        values = {
            "parameters": last.parameters,
            "removed_share": 1 - last.parameters / self._decoder.parameters(),
            "ppl": finite,
            f"ppl:{next(iter(self._held_out))}": finite,
        }
        if model.prune.unit == "block":
            values["blocks"] = len(self._decoder.blocks) - len(rounds)
        return {
            **_labels(model),
            "retrained": model.retrain,
            "key": None,
            "removed": {"units": [list(step.removed) for step in rounds]},
            "values": values,
            "errors": {},
            "losses": {},
            "intervals": {},
            "tasks": {},
            "made": {"steps": self._iterated.steps, "trainings": len(rounds) - (not model.retrain)},
        }

    def _perplexity(self, lazy: _Lazy, name: str) -> dict[str, Any]:
        progress = partial(self._progress, f"perplexity, {lazy.name}, {name}")
        return perplexity_of(lazy.decoder, self._held_out[name], progress)

    def _task_content(self, name: str) -> dict[str, Any]:
        documents = self._tasks.local.get(name) if self._tasks else None
        return {
            "task": name,
            "limit": self._budget.limit,
            "documents": None if documents is None else content_key(documents.rows),
        }

    def _accuracy(self, lazy: _Lazy, name: str) -> dict[str, Any]:
        assert self._tasks is not None
        one = Tasks((name,), {key: value for key, value in self._tasks.local.items() if key == name}, self._tasks.limit)

        def progress(stage: str, done: int, total: int) -> None:
            self._progress(f"{stage}, {lazy.name}", done, total)

        return accuracies_of(lazy.decoder, one, progress)

    def _written(self, lazy: _Lazy) -> dict[str, Any]:
        return texts_of(lazy.decoder, self._budget, self._progress)

    def _timings(self) -> list[dict[str, Any]]:
        """The timings of one row of each size; a row of the same sizes has the same."""
        speed = self._recipe.measures.speed
        if speed is None:
            return []
        decoder = self._models.in_dtype(self._decoder)
        sizes = load_sizes(decoder)
        batches = speed.batches or self._budget.batches
        shortest = min(speed.input_tokens) + min(speed.output_tokens or self._budget.output_tokens)
        room = Room(decoder.device, min(batches), shortest)
        room.admit(decoder, 0)
        rows = [Row(ORIGINAL, ORIGINAL, None, decoder, None)]
        same: dict[tuple[BlockSizes, ...], str] = {_shape(decoder): ORIGINAL}
        self._timed = {self._recipe.models[0].name: ORIGINAL}
        contents: list[Any] = [self._models.identity]
        for model in self._recipe.models:
            if model.prune is None:
                continue
            chosen = self._models.pruning(model.prune)
            row = pruned_row(decoder, sizes, chosen, room, model.name, _method(model), model.group or None, {})
            shape = _shape(row.decoder)
            if shape not in same:
                same[shape] = model.name
                rows.append(row)
                contents.append(self._models.content(model)["pruning"])
            self._timed[model.name] = same[shape]
        prompts = prompts_from(next(iter(self._held_out.values())).input_ids, max(batches), max(speed.input_tokens))
        return timings_of(rows, contents, prompts, speed, self._budget, self._store, self._progress)

    def _add_speeds(self, rows: list[dict[str, Any]], timings: list[dict[str, Any]]) -> None:
        """Each row's speed in the setting that is shown, after the first of the prompts' lengths."""
        for row in rows if timings else ():
            row["timed_as"] = self._timed[row["name"]]
            values, row["intervals"] = speed_values(
                timings[0]["timings"], row["timed_as"], ORIGINAL, *shown_setting(timings[0])
            )
            row["values"] |= values


class _Lazy:
    """A row's model in the dtype of the evaluations, made when it is first needed."""

    def __init__(self, models: Models, model: Model) -> None:
        self._models, self._model, self.name = models, model, model.name

    @cached_property
    def decoder(self) -> Decoder:
        return self._models.in_dtype(self._models.made(self._model))


def _labels(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "method": _method(model),
        "group": model.group,
        "series": model.series,
        "x": model.x,
        "repaired": model.repair,
    }


def _is_iterative(model: Model) -> bool:
    return model.prune is not None and model.prune.search == ITERATIVE


def _count(prune: Prune) -> int:
    return parse_amount(prune.amount).count or 0


def _method(model: Model) -> str:
    """As rows of a comparison are called: figures know their colours by it."""
    if model.prune is None:
        return ORIGINAL
    if model.prune.method != DEPTH:
        return model.prune.method
    words = [model.prune.criterion, *([] if model.prune.unit == "block" else [model.prune.unit])]
    return f"{DEPTH} {' '.join(words)}"


def _removed(pruning: Pruning) -> dict[str, Any]:
    """Which blocks and sublayers went, and how many KV groups and neurons of how many blocks."""
    groups, neurons = pruning.kv_groups, pruning.neurons
    return {
        "blocks": list(pruning.blocks),
        "mha": list(pruning.mha),
        "ffn": list(pruning.ffn),
        "kv_groups": sum(map(len, groups.values())),
        "neurons": sum(map(len, neurons.values())),
        "made_by": pruning.made_by,
    }


def _shape(decoder: Decoder) -> tuple[BlockSizes, ...]:
    return tuple(BlockSizes.of(block) for block in decoder.blocks)
