"""A recipe's figures, by the kind that it names; the drawing is that of comparisons and scores where there is some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pyprune.scoring.scores import Scores
from pyprune.study.figure import add_grid, legend_below, new_figure, plain_ticks, png
from pyprune.study.labels import ORIGINAL, styles
from pyprune.study.plots import has_quality, latency_by_batch, quality_and_throughput
from pyprune.study.recipes.table import scaled
from pyprune.study.recipes.values import known_value
from pyprune.study.score_plots import chosen_bars, heat_map

MARKED = 0.2
"""Share of the parameters whose removal is marked in figures of scores."""

Figures = dict[str, tuple[str, bytes]]
"""File name -> caption and PNG."""


def figures(results: dict[str, Any]) -> Figures:
    """All figures of a recipe's results."""
    return _KINDS[results["recipe"]["figure"]["kind"]](results)


def lines(results: dict[str, Any]) -> Figures:
    """A panel for each value, ours above and, where it prints numbers, the paper's below: a line for each series."""
    figure_, rows = results["recipe"]["figure"], [row for row in results["rows"] if row["x"] is not None]
    values = [value for value in figure_["y"] if any(row["values"].get(value) is not None for row in rows)]
    if not values:
        return {}
    with_paper = any(isinstance(row["paper"].get(value), int | float) for row in rows for value in values)
    drawing = new_figure(6.0 * len(values), 4.4 * (1 + with_paper))
    panels = drawing.subplots(1 + with_paper, len(values), squeeze=False)
    looks = series_looks(rows)
    for column, value in enumerate(values):
        about = known_value(value)
        points = [
            (row, scaled(row["values"].get(value), about), scaled(row["errors"].get(value), about)) for row in rows
        ]
        _lines_panel(panels[0][column], points, looks)
        panels[0][column].set_title(f"{results['model']['name']}: {about.header}")
        paper = [(row, _paper(row, value), None) for row in rows]
        if any(number is not None for _, number, _ in paper):
            _lines_panel(panels[1][column], paper, looks)
            panels[1][column].set_title(f"The paper: {about.header}")
        elif with_paper:
            panels[1][column].set_axis_off()
        for line in panels[:, column]:
            line.set_xlabel(figure_["x"])
    handles, labels = panels[0][0].get_legend_handles_labels()
    legend_below(drawing, handles, labels)
    return {"figure.png": (results["recipe"]["title"], png(drawing))}


def series_looks(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Colour and marker of each series, by the method of its first row."""
    methods: dict[str, str] = {}
    for row in rows:
        methods.setdefault(row["series"], row["method"])
    by_method = styles(methods.values())
    looks = {series: by_method[method] for series, method in methods.items()}
    if len({look.colour for look in looks.values()}) < len(looks):  # several series of one kind of method
        palette = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
        looks = {
            series: look._replace(colour=palette[place % len(palette)])
            for place, (series, look) in enumerate(looks.items())
        }
    return looks


def _lines_panel(panel: Any, entries: Sequence[tuple[dict[str, Any], Any, Any]], looks: dict[str, Any]) -> None:
    """entries: rows with their value and its error; those whose value is no number are left out."""
    seen: list[float] = []
    for series, (colour, marker) in looks.items():
        points = sorted(
            (row["x"], value, error or 0.0)
            for row, value, error in entries
            if row["series"] == series and isinstance(value, int | float)
        )
        if points:
            x, y, bars = zip(*points, strict=True)
            seen += y
            panel.errorbar(x, y, yerr=bars, label=series, color=colour, marker=marker, capsize=3, linewidth=1.4)
    if seen and min(seen) > 0 and max(seen) > 8 * min(seen):
        panel.set_yscale("log")
        plain_ticks(panel.yaxis)
    places = sorted({row["x"] for row, _, _ in entries})
    if places[0] > 0 and places[-1] >= 20 * places[0]:
        panel.set_xscale("log")
    panel.set_xticks(places, [f"{place:g}" for place in places])
    panel.minorticks_off()
    add_grid(panel)


def _paper(row: dict[str, Any], value: str) -> float | None:
    number = row["paper"].get(value)
    return number if isinstance(number, int | float) else None


def quality_speed(results: dict[str, Any]) -> Figures:
    """After Figure 1, and Figure 2 of the same times."""
    return _speed_figures(results, "speed", _speed_caption, quality_and_throughput)


def _speed_caption(comparison: dict[str, Any]) -> str:
    return "Quality, latency and throughput" if has_quality(comparison) else "Latency and throughput"


def latency_batch(results: dict[str, Any]) -> Figures:
    """After the lower half of Figure 2."""
    return _speed_figures(results, "latency", lambda _: "Latency against batch size", latency_by_batch)


def _speed_figures(
    results: dict[str, Any],
    stem: str,
    caption: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any]], bytes],
) -> Figures:
    drawn: Figures = {}
    for measured in results["timings"]:
        tokens = measured["protocol"]["input_tokens"]
        name = stem if len(results["timings"]) == 1 else f"{stem}-{tokens}"
        comparison = as_comparison(results, measured)
        drawn[f"{name}.png"] = (f"{caption(comparison)}, {tokens} input tokens", draw(comparison))
    return drawn


def as_comparison(results: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """The timings of one number of input tokens in the form of `compare`'s results, every row under its own name."""
    rows: list[dict[str, Any]] = []
    timings: list[dict[str, Any]] = []
    shortages: list[dict[str, Any]] = []
    for row in results["rows"]:
        name = ORIGINAL if row["method"] == ORIGINAL else row["name"]
        about = {"name": name, "method": row["method"], "ratio": row["group"] or None, "ppl_stderr": None}
        rows.append({"ppl": None, **row["values"], **about})
        for entries, kept in ((measured["timings"], timings), (measured["oom"], shortages)):
            kept += [{**entry, "row": name} for entry in entries if entry["row"] == row["timed_as"]]
    return {
        "rows": rows,
        "timings": timings,
        "oom": shortages,
        "evaluations": {"perplexity": {}},
        "settings": {"batches": measured["batches"], "dtype": results["budget"]["dtype"]},
        "protocol": measured["protocol"],
    }


def scores(results: dict[str, Any]) -> Figures:
    """After Figure 4: the scores of each criterion, and of several a map."""
    kinds = [Scores.from_dict(data) for data in results["scores"]]
    drawn: Figures = {}
    for kind in kinds:
        marked = None if kind.unit_parameters is None else MARKED
        drawn[f"scores-{kind.criterion}.png"] = (f"Scores by {kind.criterion}", chosen_bars(kind, ratio=marked))
    if len(kinds) > 1:
        labels = [kind.criterion for kind in kinds]
        drawn["map.png"] = ("Places under each criterion", heat_map(kinds, labels))
    return drawn


_KINDS: dict[str, Callable[[dict[str, Any]], Figures]] = {
    "none": lambda results: {},
    "lines": lines,
    "quality-speed": quality_speed,
    "latency-batch": latency_batch,
    "scores": scores,
}
