"""A directory of results and of what is drawn from them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.files import json_text, require_free_directory, whole_directory, write_bytes, write_json

RESULTS = "results.json"

Draw = Callable[[dict[str, Any]], dict[str, bytes]]
"""Results -> the files that are drawn from them alone, by name, the page last."""


class ReportError(RuntimeError):
    """The report could not be drawn; the message says where the results are, which `pyprune report` draws again."""


def save_results(results: dict[str, Any], directory: str | os.PathLike[str], draw: Draw) -> None:
    """Write `results.json` (all raw samples) into a new directory, then all that is drawn from it.

    What took hours is on disk before anything can fail to be drawn: on an error the directory keeps results.json.
    Raises InputError when the directory is taken, ReportError when something cannot be drawn.
    """
    target = require_free_directory(directory)
    with whole_directory(target) as scratch:
        write_json(scratch / RESULTS, results)
    try:
        for name, data in draw(results).items():
            write_bytes(target / name, data)
    except Exception as error:
        kept = Path(directory) / RESULTS
        raise ReportError(
            f"the report could not be drawn ({type(error).__name__}: {error}); the results are in {kept}: "
            f"pyprune report {kept} --out DIR draws them again"
        ) from error


def draw_results(results: dict[str, Any], directory: str | os.PathLike[str], expected_format: str, draw: Draw) -> None:
    """Write the same files as `save_results` from results that are on disk already; whole or not at all.

    Raises InputError when the directory is taken or the results are of another format.
    """
    if results.get("format") != expected_format:
        raise InputError(f"results of format {results.get('format')!r}: {expected_format!r} is expected")
    target = require_free_directory(directory)
    files = {RESULTS: json_text(results).encode(), **draw(results)}
    with whole_directory(target) as scratch:
        for name, data in files.items():
            (scratch / name).write_bytes(data)
