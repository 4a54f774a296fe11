"""A recipe as data: which models are made of one, what is measured of each, and how that is shown."""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.evaluation.paper_tasks import PAPER_TASKS
from pyprune.pruning.amount import parse_amount
from pyprune.pruning.width import METHODS, variant_options
from pyprune.recovery.methods import chain_of, check_kind
from pyprune.scoring.searches.search import METHODS as SEARCHES
from pyprune.study.depth_choice import DepthChoice
from pyprune.study.recipes.budget import Budget, read_budget
from pyprune.study.recipes.fields import Fields, flag, number, one_of, several, table, table_of, tables, text, whole
from pyprune.study.recipes.names import BUDGETS, SHIPPED, shipped_recipes
from pyprune.study.recipes.values import known_value

DEPTH = "depth"
ITERATIVE = "iterative"
"""A search of ours alone: remove a block, retrain, and so on (`pyprune.iterate`)."""
UNITS = ("block", "mha", "ffn", "mha+ffn")
FIGURES = ("none", "lines", "quality-speed", "latency-batch", "scores")
CLAIMS = ("lower", "higher")


@dataclass(frozen=True)
class Prune:
    """How a model is pruned. `method`: depth, or a width method; `amount`: a share of the parameters or a number of
    units, as `pyprune prune` takes it; `samples`: calibration windows (None: the budget's). The rest as in
    `DepthChoice` and `pyprune.width`."""

    method: str
    amount: str
    criterion: str = "ppl"
    unit: str = "block"
    protect: str | None = None
    search: str = "one-shot"
    variant: str | None = None
    samples: int | None = None

    @property
    def choice(self) -> DepthChoice:
        """What chooses the units, of a depth pruning."""
        return DepthChoice(DEPTH, self.criterion, self.unit, self.protect, self.search)


@dataclass(frozen=True)
class Model:
    """A row: the original (no `prune`), or a pruned form of it, repaired, retrained or both.

    `repair`: a method or a chain of them. `group`: rows that are compared with one another; `series` and `x`: the line
    and the place in a figure. `paper`: column -> value, by which the paper's row is looked up; None where it has none.
    """

    name: str
    prune: Prune | None = None
    repair: str | None = None
    retrain: bool = False
    distill: bool = False
    group: str = ""
    series: str = ""
    x: float | None = None
    paper: dict[str, str] | None = None


@dataclass(frozen=True)
class Speed:
    """Batches, prompts and new tokens that are timed; None: the budget's."""

    batches: tuple[int, ...] | None = None
    input_tokens: tuple[int, ...] = (12,)
    output_tokens: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Memory:
    """Batches and new tokens (after `input_tokens`) whose memory is planned."""

    batches: tuple[int, ...] = (1, 16, 64)
    output_tokens: tuple[int, ...] = (128, 512)
    input_tokens: int = 12


@dataclass(frozen=True)
class Measures:
    """What is measured of every model. `scores`: criteria whose scores of the original's units are kept."""

    perplexity: bool = False
    tasks: tuple[str, ...] = ()
    speed: Speed | None = None
    memory: Memory | None = None
    samples: bool = False
    scores: tuple[str, ...] = ()


@dataclass(frozen=True)
class Column:
    """A column: one of the values that the measures give, and the paper's file and column that stand beside it, looked
    up with `where` added."""

    value: str
    header: str
    paper: str | None = None
    where: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """`kind`: one of FIGURES; `y`: the values drawn, a panel each; `x`: what the horizontal axis is called."""

    kind: str = "none"
    y: tuple[str, ...] = ()
    x: str = ""


@dataclass(frozen=True)
class Claim:
    """Something the paper says: `value` is `relation` in the rows whose name holds `rows` than in those of the same
    group whose name holds `than` (or, with `factor`, than that many times theirs)."""

    text: str
    value: str
    rows: str
    relation: str
    than: str
    factor: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """All of it. `paper_where`: what every look-up in the paper's files has in common; `paper_setup`: what the paper
    ran, in words; `incomparable`: what cannot be compared, beyond what settings tell."""

    name: str
    title: str
    shows: str
    source: str
    models: tuple[Model, ...]
    measures: Measures
    columns: tuple[Column, ...]
    figure: Figure
    claims: tuple[Claim, ...]
    budgets: dict[str, Budget]
    paper_setup: str = ""
    paper_where: dict[str, str] = field(default_factory=dict)
    paper_folder: Path | None = None
    incomparable: tuple[str, ...] = ()

    def content(self) -> dict[str, Any]:
        """JSON data: what was asked for, for the results."""
        data = asdict(self)
        del data["budgets"], data["paper_folder"]
        return data


def read_recipe(name: str | os.PathLike[str]) -> Recipe:
    """The shipped recipe of that name, or the one in a TOML file.

    InputError for another name, a file that is not TOML, and any key or value that is not accepted, with what is.
    """
    given = os.fspath(name)
    file = Path(given)
    if not given.endswith(".toml"):
        file = SHIPPED / f"{given}.toml"
        if given not in shipped_recipes():
            raise InputError(f"recipe {given!r}: {', '.join(shipped_recipes())}, or a .toml file is expected")
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{given}: {error.strerror}; a readable TOML file is expected") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{given}: not TOML ({error})") from None
    return _recipe(file.stem, data, given, file.parent)


def _recipe(name: str, data: Mapping[str, Any], where: str, folder: Path) -> Recipe:
    fields = Fields(data, where)
    budget_tables = fields.take("budget", table_of(table), {})
    budgets = {
        budget: read_budget(budget, budget_tables.pop(budget, {}), f"{where}, budget.{budget}") for budget in BUDGETS
    }
    for other in budget_tables:
        raise InputError(f"{where}: budget {other!r}: quick or paper is expected")
    paper = Fields(fields.take("paper", table, {}), f"{where}, paper")
    where_ = paper.take("where", table_of(_printed), {})
    setup = paper.take("setup", text, "")
    incomparable = paper.take("incomparable", several(text), ())
    paper.finish()
    recipe = Recipe(
        name=name,
        title=fields.take("title", text),
        shows=fields.take("shows", text),
        source=fields.take("source", text, ""),
        models=_models(fields.take("models", tables), where),
        measures=_measures(fields.take("measures", table), f"{where}, measures"),
        columns=tuple(_column(c, f"{where}, columns {i}") for i, c in enumerate(fields.take("columns", tables), 1)),
        figure=_figure(fields.take("figure", table, {}), f"{where}, figure"),
        claims=tuple(_claim(c, f"{where}, claims {i}") for i, c in enumerate(fields.take("claims", tables, []), 1)),
        budgets=budgets,
        paper_setup=setup,
        paper_where=where_,
        paper_folder=folder,
        incomparable=incomparable,
    )
    fields.finish()
    _check(recipe, where)
    return recipe


def _models(entries: list[dict[str, Any]], where: str) -> tuple[Model, ...]:
    models = []
    for place, entry in enumerate(entries, 1):
        here = f"{where}, models {place}"
        each = Fields(entry, here).take("each", table_of(several(lambda value: value)), {})
        rest = {key: value for key, value in entry.items() if key != "each"}
        for values in itertools.product(*each.values()):
            filled = _filled(rest, dict(zip(each, map(str, values), strict=True)))
            for word in re.findall(r"\{\w+\}", str(list(_texts(filled)))):
                raise InputError(f"{here}: {word}: is not a key of each; one is expected in braces")
            models.append(_model(filled, here))
    groups = list(dict.fromkeys(model.group for model in models))
    return tuple(sorted(models, key=lambda model: groups.index(model.group)))


def _filled(value: Any, words: Mapping[str, str]) -> Any:
    """The value with every {word} in its texts replaced; a text that is one word and stands for a number is that."""
    if isinstance(value, Mapping):
        return {key: _filled(item, words) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    for word, replacement in words.items():
        if value == f"{{{word}}}" and replacement.isdigit():
            return int(replacement)
        value = value.replace(f"{{{word}}}", replacement)
    return value


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _model(entry: Mapping[str, Any], where: str) -> Model:
    fields = Fields(entry, where)
    prune = fields.take("prune", table, None)
    model = Model(
        name=fields.take("name", text),
        prune=None if prune is None else _prune(prune, f"{where}, prune"),
        repair=fields.take("repair", _repair, None),
        retrain=fields.take("retrain", flag, False),
        distill=fields.take("distill", flag, False),
        group=fields.take("group", _printed, ""),
        series=fields.take("series", _printed, ""),
        x=fields.take("x", _place, None),
        paper=fields.take("paper", table_of(_printed), None),
    )
    fields.finish()
    if model.prune is None and (model.repair or model.retrain or model.distill):
        raise InputError(f"{where}: {model.name}: repair and retrain need prune")
    if model.distill and not model.retrain:
        raise InputError(f"{where}: distill true: belongs to a retrained model; retrain = true is expected")
    if model.prune is not None and model.repair is not None:
        try:
            check_kind(chain_of(model.repair)[0], narrows=model.prune.method != DEPTH)
        except InputError as error:
            raise InputError(f"{where}: {model.name}: {error}") from None
    if model.prune is not None and model.prune.search == ITERATIVE:
        for key in ("repair", "distill"):
            if getattr(model, key):
                raise InputError(
                    f"{where}: {key} {getattr(model, key)!r}: not for search {ITERATIVE}, which only retrains"
                )
    return model


def _printed(value: Any) -> str:
    """A text, which may be empty, or a number as text."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("a text or a whole number is expected")
    return str(value)


def _repair(value: Any) -> str:
    """A method of repair, or a chain of them."""
    chain_of(text(value))
    return str(value)


def _place(value: Any) -> float:
    """A number, also written as a percentage."""
    try:
        return float(str(value).removesuffix("%"))
    except ValueError:
        raise ValueError("a number or a percentage is expected") from None


def _amount(value: Any) -> str:
    try:
        parse_amount(str(value))
    except InputError:
        raise ValueError("a share of the parameters (20%) or a number of units (6) is expected") from None
    return str(value)


def _prune(entry: Mapping[str, Any], where: str) -> Prune:
    fields = Fields(entry, where)
    prune = Prune(
        method=fields.take("method", one_of(DEPTH, *METHODS)),
        amount=fields.take("amount", _amount),
        criterion=fields.take("criterion", text, "ppl"),
        unit=fields.take("unit", one_of(*UNITS), "block"),
        protect=fields.take("protect", text, None),
        search=fields.take("search", one_of(*SEARCHES, ITERATIVE), "one-shot"),
        variant=fields.take("variant", text, None),
        samples=fields.take("samples", whole(1), None),
    )
    fields.finish()
    try:
        if prune.search == ITERATIVE:
            if (prune.criterion, prune.protect) != ("ppl", None) or parse_amount(prune.amount).count is None:
                raise InputError(
                    f"search {ITERATIVE}: criterion ppl, no protect, and a number of units as amount are expected"
                )
        elif prune.method == DEPTH:
            prune.choice.check()
        else:
            variant_options(prune.method, prune.variant)
            if parse_amount(prune.amount).count is not None:
                raise InputError(f"amount {prune.amount}: a share of the parameters is expected for {prune.method}")
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    of_depth = {"criterion": "ppl", "unit": "block", "protect": None, "search": "one-shot"}
    for key, default in of_depth.items() if prune.method != DEPTH else (("variant", None),):
        if getattr(prune, key) != default:
            raise InputError(f"{where}: {key} {getattr(prune, key)!r}: does not belong to method {prune.method}")
    return prune


def _measures(entry: Mapping[str, Any], where: str) -> Measures:
    fields = Fields(entry, where)
    speed, memory = fields.take("speed", table, None), fields.take("memory", table, None)
    measures = Measures(
        perplexity=fields.take("perplexity", flag, False),
        tasks=fields.take("tasks", several(one_of("paper", *PAPER_TASKS)), ()),
        speed=None if speed is None else _speed(speed, f"{where}.speed"),
        memory=None if memory is None else _memory(memory, f"{where}.memory"),
        samples=fields.take("samples", flag, False),
        scores=fields.take("scores", several(text), ()),
    )
    fields.finish()
    for criterion in measures.scores:
        try:
            DepthChoice(DEPTH, criterion, "block", None, "one-shot").check()
        except InputError as error:
            raise InputError(f"{where}: scores {criterion!r}: {error}") from None
    return measures


def _speed(entry: Mapping[str, Any], where: str) -> Speed:
    fields = Fields(entry, where)
    speed = Speed(
        batches=fields.take("batches", several(whole(1)), None),
        input_tokens=fields.take("input_tokens", several(whole(1)), Speed.input_tokens),
        output_tokens=fields.take("output_tokens", several(whole(1)), None),
    )
    fields.finish()
    return speed


def _memory(entry: Mapping[str, Any], where: str) -> Memory:
    fields = Fields(entry, where)
    memory = Memory(
        batches=fields.take("batches", several(whole(1)), Memory.batches),
        output_tokens=fields.take("output_tokens", several(whole(1)), Memory.output_tokens),
        input_tokens=fields.take("input_tokens", whole(1), Memory.input_tokens),
    )
    fields.finish()
    return memory


def _column(entry: Mapping[str, Any], where: str) -> Column:
    fields = Fields(entry, where)
    value = fields.take("value", _value)
    column = Column(
        value,
        fields.take("header", text, known_value(value).header),
        fields.take("paper", text, None),
        fields.take("where", table_of(_printed), {}),
    )
    fields.finish()
    return column


def _value(value: Any) -> str:
    known_value(text(value))
    return value


def _figure(entry: Mapping[str, Any], where: str) -> Figure:
    fields = Fields(entry, where)
    figure = Figure(
        kind=fields.take("kind", one_of(*FIGURES), "none"),
        y=fields.take("y", several(_value), ()),
        x=fields.take("x", text, ""),
    )
    fields.finish()
    if figure.kind == "lines" and not figure.y:
        raise InputError(f"{where}: y is missing; the values that the lines show are expected")
    return figure


def _claim(entry: Mapping[str, Any], where: str) -> Claim:
    fields = Fields(entry, where)
    claim = Claim(
        text=fields.take("text", text),
        value=fields.take("value", _value),
        rows=fields.take("rows", text),
        relation=fields.take("relation", one_of(*CLAIMS)),
        than=fields.take("than", text),
        factor=fields.take("factor", number(0), 1.0),
    )
    fields.finish()
    return claim


def _check(recipe: Recipe, where: str) -> None:
    """What holds between tables."""
    names = [model.name for model in recipe.models]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where}: models: {name!r} twice; different names are expected")
    if names and recipe.models[0].prune is not None:
        raise InputError(f"{where}: models: {names[0]!r} is pruned; the original, without prune, is expected first")
    if sum(model.prune is None for model in recipe.models) != 1:
        raise InputError(f"{where}: models: one original, without prune, is expected")
    for column in recipe.columns:
        _require_measured(recipe, column.value, f"{where}: columns")
    for value in recipe.figure.y:
        _require_measured(recipe, value, f"{where}, figure: y")
    for place, claim in enumerate(recipe.claims, 1):
        here = f"{where}, claims {place}"
        _require_measured(recipe, claim.value, here)
        for key, pattern in (("rows", claim.rows), ("than", claim.than)):
            if not any(names_row(pattern, name) for name in names):
                raise InputError(f"{here}: {key} {pattern!r}: in no row's name; a part of one is expected")
    iterative = [model for model in recipe.models if model.prune is not None and model.prune.search == ITERATIVE]
    measured = [name for name, value in vars(recipe.measures).items() if value and name not in ("perplexity", "scores")]
    if iterative and measured:
        raise InputError(
            f"{where}: measures: {measured[0]}: {iterative[0].name!r} has search {ITERATIVE}, with which only "
            "perplexity can be measured"
        )
    if iterative and not recipe.measures.perplexity:
        raise InputError(f"{where}: measures: {iterative[0].name!r} has search {ITERATIVE}; perplexity is expected")
    if len({(model.prune.unit, model.prune.samples) for model in iterative if model.prune}) > 1:
        raise InputError(f"{where}: models: search {ITERATIVE}: the same unit and samples are expected for all")
    needed_by = {"quality-speed": "speed", "latency-batch": "speed", "scores": "scores"}
    measure = needed_by.get(recipe.figure.kind)
    if measure is not None and not getattr(recipe.measures, measure):
        raise InputError(f"{where}, figure: kind {recipe.figure.kind!r}: needs {measure} under measures")
    if recipe.figure.kind == "lines" and all(model.x is None for model in recipe.models):
        raise InputError(f"{where}, figure: kind 'lines': needs an x in models")


def _require_measured(recipe: Recipe, value: str, where: str) -> None:
    """InputError for a value that no measure of the recipe gives."""
    needed = known_value(value).measure
    if needed is not None and not getattr(recipe.measures, needed):
        raise InputError(f"{where}: value {value!r}: is not measured; {needed} under measures is expected")
    kind, _, rest = value.partition(":")
    if kind == "ppl" and rest:
        texts = {name: None for budget in recipe.budgets.values() for name in budget.held_out}
        if rest not in texts:
            raise InputError(f"{where}: value {value!r}: {', '.join(texts)} are the held-out texts")
    if kind == "memory" and recipe.measures.memory is not None:
        length, batch = map(int, rest.split("x"))
        memory = recipe.measures.memory
        if length not in memory.output_tokens or batch not in memory.batches:
            raise InputError(
                f"{where}: value {value!r}: output_tokens {', '.join(map(str, memory.output_tokens))} and batches"
                f" {', '.join(map(str, memory.batches))} are measured"
            )


def names_row(pattern: str, name: str) -> bool:
    """Whether a claim's `rows` or `than`, parts of names with | between them, is about the row of this name."""
    return any(part in name for part in pattern.split("|"))
