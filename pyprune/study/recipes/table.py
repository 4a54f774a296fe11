"""A recipe's table: its rows and columns, the paper's number beside each of ours."""

from __future__ import annotations

from typing import Any

from pyprune.study.paper.tables import Cells
from pyprune.study.recipes.values import Value, known_value

RAW_TEXT = "wikitext2"


def cells(results: dict[str, Any], paper: bool = True) -> Cells:
    """As a reader sees it: numbers with their standard errors, the paper's in a column of its own where `paper`. A
    column without any number of ours is left out."""
    columns = shown_columns(results)
    papers = {c["value"] for c in columns if paper and any(c["value"] in row["paper"] for row in results["rows"])}
    header = ["model"]
    for column in columns:
        header.append(_header(results, column))
        header += ["paper"] if column["value"] in papers else []
    rows = []
    for row in results["rows"]:
        line = [_name(row)]
        for column in columns:
            name = column["value"]
            line.append(_number(row, name, known_value(name)))
            if name in papers:
                line.append(_printed(row["paper"].get(name)))
        rows.append(line)
    return header, rows


def values(results: dict[str, Any]) -> Cells:
    """For a program: each column's number, its standard error and the paper's number, unrounded."""
    columns = shown_columns(results)
    header = ["model", "group", "series", "method", "retrained"]
    for column in columns:
        header += [column["value"], f"{column['value']} stderr", f"{column['value']} paper"]
    rows = []
    for row in results["rows"]:
        line = [row["name"], row["group"], row["series"], row["method"], str(row["retrained"]).lower()]
        for column in columns:
            name = column["value"]
            number = scaled(row["values"].get(name), known_value(name))
            error = scaled(row["errors"].get(name), known_value(name))
            line += ["" if item is None else str(item) for item in (number, error, row["paper"].get(name))]
        rows.append(line)
    return header, rows


def shown_columns(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipe's columns for which there is some number of ours."""
    return [
        column
        for column in results["recipe"]["columns"]
        if any(row["values"].get(column["value"]) is not None for row in results["rows"])
    ]


def replaces_rare_words(results: dict[str, Any], value: str) -> bool:
    """Whether a value is of a WikiText-2 with "<unk>" for rare words; the one of published results is the raw text."""
    text = next(iter(results["held_out"]), "") if value == "ppl" else value.removeprefix("ppl:")
    return text == RAW_TEXT and bool(results["held_out"].get(text, {}).get("has_unk"))


def _header(results: dict[str, Any], column: dict[str, Any]) -> str:
    return column["header"] + (" (unk variant)" if replaces_rare_words(results, column["value"]) else "")


def scaled(number: Any, value: Value) -> Any:
    """The number in the paper's unit."""
    return number * value.scale if isinstance(number, int | float) and value.scale != 1 else number


def _name(row: dict[str, Any]) -> str:
    return (
        row["name"]
        + ("" if row["repaired"] is None or "repaired" in row["name"] else f", repaired by {row['repaired']}")
        + (", retrained" if row["retrained"] and "retrained" not in row["name"] else "")
    )


def _number(row: dict[str, Any], name: str, value: Value) -> str:
    if name not in row["values"]:
        return ""
    number, error = (scaled(row[kind].get(name), value) for kind in ("values", "errors"))
    if number is None:
        return value.write(None)
    return value.write(number) + ("" if not error else f" ±{error:.2g}")


def _printed(number: Any) -> str:
    return "" if number is None else number if isinstance(number, str) else f"{number:g}"
