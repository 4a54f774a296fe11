"""Figures and pages from result files alone: nothing is measured, no model is loaded."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.files import read_json, whole_directory, write_bytes, write_text
from pyprune.models.pruning import FORMAT as PRUNING
from pyprune.scoring.contrast import Contrast, contrast, named
from pyprune.scoring.scores import FORMAT as SCORES
from pyprune.scoring.scores import Scores
from pyprune.study import report
from pyprune.study.contrast_plot import side_by_side
from pyprune.study.cuts import draw_cuts
from pyprune.study.destination import require_directory, require_figure, require_file
from pyprune.study.page import html_page, html_table, inline_figure
from pyprune.study.paper import pages
from pyprune.study.paper.evidence import GPU_CHECK
from pyprune.study.quality_plot import quality_against_speed
from pyprune.study.recipes import report as recipe_report
from pyprune.study.score_plots import chosen, chosen_bars, heat_map

RENDERERS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    report.FORMAT: report.render,
    recipe_report.FORMAT: recipe_report.render,
}
"""What draws a directory from results of each format."""

SCORES_KEYS = {"model", "criterion", "unit", "scores"}
"""Scores written before their files named a format are known by these keys."""


def redraw(
    files: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    paper: bool = False,
    dark: bool = False,
    cut: bool = False,
    model: str | None = None,
    **amount: Any,
) -> list[Path]:
    """Draw `files` into `out` and return what was written.

    One comparison's results.json: its directory with figures and page; into an .svg, perplexity against tokens/s
    alone, for a dark page where `dark`. Prunings and pruned checkpoints into an .svg: what each cuts, and with `cut`
    what the rows of comparisons do (`study.cuts.draw_cuts`, which says what `model` is for). Files of the GPU check,
    comparisons beside them or, with `paper`, alone: the paper's tables and figures of speed, its own numbers beside
    (`study.paper`). Scores: into a .png, the bars of one or the map of several; else into a directory with the bars of
    each, of several the map, of two both side by side, and a page. amount: `ratio`, `count`, `protect` as in
    `pyprune.depth`, marked in the scores' figures.
    InputError for anything else, and when `out` is taken.
    """
    if str(out).lower().endswith(".svg"):
        if cut or _are_prunings(files):
            if dark or paper:
                name = "--dark" if dark else "--paper"
                raise InputError(f"{out}: {name} does not go with a drawing of what was cut")
            _refuse_amount(files, amount)
            return [draw_cuts(files, out, model)]
        if model is not None:
            raise InputError(f"--model {model}: belongs to a pruning, and {files[0]} is none")
        return [_speed_figure(files, out, dark, paper, amount)]
    for name, value in (("dark", dark), ("cut", cut), ("model", model)):
        if value:
            raise InputError(f"{out}: --{name} belongs to one drawing; a name that ends in .svg is expected")
    figure = str(out).lower().endswith(".png")
    target = require_figure(out) if figure else require_directory(out)
    data = [read_json(path) for path in files]
    formats = [_format_of(path, content) for path, content in zip(files, data, strict=True)]
    if paper or set(formats) & set(GPU_CHECK):
        _require_directory_alone(out, files, amount)
        return [target / name for name in pages.render(files, data, out)]
    if set(formats) != {SCORES}:
        return [_results(files, data, formats, out, amount)]
    scores = [Scores.from_json(path) for path in files]
    labels = _labels(files)
    if figure:
        write_bytes(target, _one_figure(scores, labels, amount))
        return [target]
    with whole_directory(out) as scratch:
        names = _write_scores(scratch, scores, labels, amount)
    return [target / name for name in names]


def _are_prunings(files: Sequence[str | os.PathLike[str]]) -> bool:
    """Whether these are directories of checkpoints, and files of prunings, of which older ones name no format."""
    return all(os.path.isdir(path) or _is_pruning(read_json(path)) for path in files)


def _is_pruning(content: object) -> bool:
    return isinstance(content, dict) and content.get("format", PRUNING) == PRUNING and not content.keys() >= SCORES_KEYS


def _speed_figure(files: Sequence[Any], out: Any, dark: bool, paper: bool, amount: dict[str, Any]) -> Path:
    target = require_file(out)
    if len(files) != 1 or paper or amount:
        raise InputError(f"{out}: an .svg is drawn of one comparison's results.json, without other options than --dark")
    results = read_json(files[0])
    if not isinstance(results, dict) or _format_of(files[0], results) != report.FORMAT:
        raise InputError(f"{files[0]}: {report.FORMAT} of pyprune compare is expected for a figure in SVG")
    try:
        image = quality_against_speed(results, dark)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(
            f"{files[0]}: incomplete results of {report.FORMAT} ({type(error).__name__}: {error})"
        ) from None
    write_bytes(target, image)
    return target


def _format_of(path: str | os.PathLike[str], content: object) -> str:
    """The format that a file names; scores for an older file of their shape. InputError for anything else."""
    if isinstance(content, dict):
        if isinstance(content.get("format"), str):
            return content["format"]
        if "format" not in content and content.keys() >= SCORES_KEYS:
            return SCORES
    accepted = ", ".join((SCORES, *RENDERERS, *GPU_CHECK))
    raise InputError(f"{path}: names no format; a JSON object with one of the formats {accepted} is expected")


def _results(files: Sequence[Any], data: list[Any], formats: list[Any], out: Any, amount: dict[str, Any]) -> Path:
    unknown = [(path, name) for path, name in zip(files, formats, strict=True) if name not in (*RENDERERS, SCORES)]
    for path, name in unknown:
        accepted = ", ".join((SCORES, *RENDERERS, *GPU_CHECK))
        raise InputError(f"{path}: results of format {name!r}; {accepted} are accepted")
    if len(files) > 1:
        held = ", ".join(dict.fromkeys(formats))
        raise InputError(f"report: {len(files)} files with results of {held}; one, or scores alone, are expected")
    _require_directory_alone(out, files, amount)
    try:
        RENDERERS[formats[0]](data[0], Path(out))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{files[0]}: incomplete results of {formats[0]} ({type(error).__name__}: {error})") from None
    return Path(out) / "index.html"


def _require_directory_alone(out: Any, files: Sequence[Any], amount: dict[str, Any]) -> None:
    if str(out).lower().endswith(".png"):
        raise InputError(f"{out}: these results are drawn as several figures and a page; a directory is expected")
    _refuse_amount(files, amount)


def _refuse_amount(files: Sequence[Any], amount: dict[str, Any]) -> None:
    for name, value in amount.items():
        raise InputError(f"--{name} {value}: belongs to scores, and {files[0]} holds none")


def _one_figure(scores: list[Scores], labels: list[str], amount: dict[str, Any]) -> bytes:
    return chosen_bars(scores[0], **amount) if len(scores) == 1 else _map(scores, labels, amount)


def _map(scores: list[Scores], labels: list[str], amount: dict[str, Any]) -> bytes:
    return heat_map(scores, labels, [chosen(one, **amount) for one in scores])


def _write_scores(folder: Path, scores: list[Scores], labels: list[str], amount: dict[str, Any]) -> list[str]:
    figures: dict[str, tuple[str, bytes]] = {}
    parts = []
    if len(scores) > 1:
        rows = [
            [one, other, *_agreement(contrast(a, b, **amount))]
            for (one, a), (other, b) in itertools.combinations(zip(labels, scores, strict=True), 2)
        ]
        header = ["A", "B", "Spearman", "Kendall", "goes under A alone", "under both", "under B alone"]
        parts += ["<h2>How far they agree</h2>", html_table(header, rows)]
        figures["map.png"] = "Places under each", _map(scores, labels, amount)
    if len(scores) == 2:
        figures["both.png"] = "Side by side", side_by_side(contrast(*scores, **amount))
    for label, one in zip(labels, scores, strict=True):
        figures[f"bars-{label}.png"] = f"{label}: {named(one)}", chosen_bars(one, **amount)
    for name, (title, image) in figures.items():
        (folder / name).write_bytes(image)
        parts.append(inline_figure(title, image))
    title = "Scores of " + ", ".join(dict.fromkeys(one.model for one in scores))
    write_text(folder / "index.html", html_page(title, parts))
    return ["index.html", *figures]


def _agreement(contrast: Contrast) -> list[str]:
    numbers = [
        "none" if n is None else f"{n:.3f}" for n in (contrast.correlation.spearman, contrast.correlation.kendall)
    ]
    lists = (contrast.only_a, contrast.both, contrast.only_b)
    return numbers + [", ".join(str(i) if kind == "block" else f"{kind} {i}" for kind, i in units) for units in lists]


def _labels(files: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The files' bare names, numbered where two are the same."""
    stems = [Path(path).stem for path in files]
    return [stem if stems.count(stem) == 1 else f"{stem}-{place}" for place, stem in enumerate(stems, start=1)]
