"""The numbers that the paper prints, looked up for a row and a column of a recipe."""

from __future__ import annotations

import csv
import math
from functools import cache
from pathlib import Path

from pyprune.errors import InputError
from pyprune.study import paper
from pyprune.study.recipes.recipe import Column, Model, Recipe

OOM = "OOM"
"""Stands in the files, as in the paper, where memory did not suffice."""


def paper_number(recipe: Recipe, model: Model, column: Column) -> float | str | None:
    """The number for a model, or OOM; None where the paper has none. The column's `paper` is "file:column" of a CSV
    file beside the recipe, or of the paper's that come with the package.

    InputError for a file or column that there is not, and where several lines fit.
    """
    if column.paper is None or model.paper is None:
        return None
    name, _, field = column.paper.partition(":")
    header, lines = _read(_file(recipe, name, column.paper))
    if field not in header:
        raise InputError(f"{recipe.name}: paper {column.paper!r}: {', '.join(header)} are the columns of {name}.csv")
    wanted = {
        key: value for key, value in {**recipe.paper_where, **model.paper, **column.where}.items() if key in header
    }
    fitting = [line for line in lines if all(line[key] == value for key, value in wanted.items())]
    if len(fitting) > 1:
        raise InputError(
            f"{recipe.name}: paper {column.paper!r}: {len(fitting)} lines fit {model.name!r} ({wanted}); one is "
            "expected"
        )
    if not fitting or not fitting[0][field]:
        return None
    cell = fitting[0][field]
    if cell == OOM:
        return OOM
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            f"{recipe.name}: paper {column.paper!r}: {cell!r} for {model.name!r} in {name}.csv; a number, {OOM} or "
            "nothing is expected"
        )
    return number


def check_paper(recipe: Recipe) -> None:
    """Raise InputError for a look-up that cannot be made, before anything is measured."""
    for model in recipe.models:
        for column in recipe.columns:
            paper_number(recipe, model, column)


def _file(recipe: Recipe, name: str, column: str) -> Path:
    folders = [Path(paper.__file__).parent, *([recipe.paper_folder] if recipe.paper_folder else [])]
    for folder in reversed(folders):
        if (folder / f"{name}.csv").is_file():
            return folder / f"{name}.csv"
    raise InputError(
        f"{recipe.name}: paper {column!r}: no file {name}.csv; FILE:COLUMN, such as quality:average, is expected"
    )


@cache
def _read(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    with file.open(encoding="utf-8", newline="") as source:
        reader = csv.DictReader(source)
        return list(reader.fieldnames or []), list(reader)
