"""One panel for a page or a README: perplexity against tokens/s of a comparison's models, under each engine, as SVG."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any, NamedTuple

from pyprune.errors import InputError
from pyprune.study.figure import new_figure, plain_ticks
from pyprune.study.labels import DEPTH, ORIGINAL, label_of, shown_method, styles, unpadded
from pyprune.study.table import engines, measured, table

LINE_HEIGHT = 12.5
"""Of the models' names, in points."""
ENGINE_NAMES = {"hf": "Hugging Face", "pyprune": "pyprune"}


class Theme(NamedTuple):
    """Colours of ink and of lines behind the points, and those that stand for others which the ground would swallow."""

    ink: str
    grid: str
    instead: dict[str, str]


LIGHT = Theme("#1f2328", "#d8dee4", {})
DARK = Theme("#e6edf3", "#3d444d", {"#555555": "#b0b7bf", "#0072B2": "#3d8bfd"})


def quality_against_speed(results: dict[str, Any], dark: bool = False, batch: int | None = None) -> bytes:
    """SVG on a transparent ground: a line for each model from Hugging Face's tokens/s to pyprune's, at its perplexity.

    Rows whose widths are padded are left out: they are the same models. batch: the smallest that was timed if None.
    The file's description is the `fingerprint` of what is drawn. InputError where nothing was timed at `batch`, or the
    comparison has no perplexities.
    """
    points = drawn(results, batch)
    theme = DARK if dark else LIGHT
    looks = styles(line["method"] for line in table(results))
    figure = new_figure(7.6, 3.9)
    panel = figure.subplots()
    fastest = max(point["tokens_per_s"] for point in points)
    for name in dict.fromkeys(point["row"] for point in points):
        row = [point for point in points if point["row"] == name]
        colour, marker = looks[row[0]["method"]]
        colour = theme.instead.get(colour, colour)
        speeds = [point["tokens_per_s"] for point in row]
        panel.plot(speeds, [point["ppl"] for point in row], color=colour, linewidth=1.1, alpha=0.6, zorder=2)
        panel.plot(
            [max(speeds), fastest],
            [row[0]["ppl"]] * 2,
            color=colour,
            alpha=0.6,
            linewidth=0.8,
            linestyle="dotted",
            zorder=1,
        )
        for point in row:
            filled = point["engine"] == "pyprune"
            panel.plot(
                point["tokens_per_s"], point["ppl"], marker=marker, markersize=8, linestyle="none", zorder=3,
                markerfacecolor=colour if filled else "none", markeredgecolor=colour, markeredgewidth=1.6,
            )  # fmt: skip
    for filled, engine in enumerate(ENGINE_NAMES):
        face = theme.ink if filled else "none"
        panel.plot(
            [], [], marker="o", markersize=7, linestyle="none", color=theme.ink, markerfacecolor=face,
            label=ENGINE_NAMES[engine],
        )  # fmt: skip
    _axes(panel, points, theme)
    _labels(panel, points, theme)
    target = io.BytesIO()
    # Neither dates nor random ids: the same results give the same file.
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "pyprune", "svg.fonttype": "path"}):
        figure.savefig(
            target, format="svg", transparent=True, metadata={"Date": None, "Description": fingerprint(points)}
        )
    return target.getvalue()


def drawn(results: dict[str, Any], batch: int | None = None) -> list[dict[str, Any]]:
    """The points: row, method, engine, tokens/s and perplexity, of the fewest output tokens."""
    lines = [line for line in measured(results) if line.get("ppl") is not None]
    if batch is None:
        batch = min((line["batch"] for line in lines), default=0)
    lines = [line for line in lines if line["batch"] == batch and unpadded(line["method"]) == line["method"]]
    if not lines:
        raise InputError(f"batch {batch}: the comparison holds no times with a perplexity there")
    length = min(line["output_tokens"] for line in lines)
    order = engines(results)
    lines = sorted(
        (line for line in lines if line["output_tokens"] == length), key=lambda line: order.index(line["engine"])
    )
    keys = ("row", "method", "engine", "batch", "output_tokens", "tokens_per_s", "ppl")
    return [{key: line[key] for key in keys} for line in lines]


def fingerprint(points: list[dict[str, Any]]) -> str:
    """SHA-256 of the points to four digits: a figure that holds another one is out of date."""
    rounded = [{key: f"{value:.4g}" if isinstance(value, float) else value for key, value in p.items()} for p in points]
    return hashlib.sha256(json.dumps(rounded, sort_keys=True).encode()).hexdigest()


def _labels(panel: Any, points: list[dict[str, Any]], theme: Theme) -> None:
    """The models' names. All begin behind the fastest point: beside its own, one could cover another model's; and none
    covers another where perplexities are near."""
    panel.figure.draw_without_rendering()  # the layout, from which the heights of points are known
    rows = {point["row"]: point for point in points}.values()
    to_points = 72 / panel.figure.dpi
    wanted = [panel.transData.transform((0, point["ppl"]))[1] * to_points for point in rows]
    fastest = max(point["tokens_per_s"] for point in points)
    for point, height, place in zip(rows, wanted, spread(wanted, LINE_HEIGHT), strict=True):
        panel.annotate(
            _label(point), (fastest, point["ppl"]), xytext=(11, place - height), textcoords="offset points",
            va="center", fontsize=9.5, color=theme.ink,
        )  # fmt: skip


def spread(wanted: list[float], distance: float) -> list[float]:
    """Places as near to the wanted ones as a least distance between them allows, in the same order.

    Each run of places that would touch is centred on the mean of what its members want."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    runs: list[list[int]] = []
    for member in order:
        runs.append([member])
        while len(runs) > 1 and _top(runs[-2], wanted, distance) + distance > _bottom(runs[-1], wanted, distance):
            run = runs.pop()
            runs[-1] += run
    places = dict.fromkeys(order, 0.0)
    for run in runs:
        bottom = _bottom(run, wanted, distance)
        places.update({member: bottom + number * distance for number, member in enumerate(run)})
    return [places[member] for member in range(len(wanted))]


def _bottom(run: list[int], wanted: list[float], distance: float) -> float:
    return sum(wanted[member] for member in run) / len(run) - (len(run) - 1) * distance / 2


def _top(run: list[int], wanted: list[float], distance: float) -> float:
    return _bottom(run, wanted, distance) + (len(run) - 1) * distance


def _label(point: dict[str, Any]) -> str:
    if point["row"] == ORIGINAL:
        return ORIGINAL
    method = point["method"]
    return "depth pruning" if method == DEPTH else label_of(shown_method(method))


def _axes(panel: Any, points: list[dict[str, Any]], theme: Theme) -> None:
    perplexities = [point["ppl"] for point in points]
    if max(perplexities) > 8 * min(perplexities):
        panel.set_yscale("log")
        plain_ticks(panel.yaxis)
    panel.set_xlim(0, 1.25 * max(point["tokens_per_s"] for point in points))
    panel.margins(y=0.12)
    panel.set_xlabel(f"tokens/s (batch {points[0]['batch']}, right is better)", color=theme.ink)
    panel.set_ylabel("perplexity (down is better)", color=theme.ink)
    panel.grid(color=theme.grid, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(colors=theme.ink, which="both")
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)
    legend = panel.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, fontsize=9, frameon=False, borderpad=0.2)
    for text in legend.get_texts():
        text.set_color(theme.ink)
