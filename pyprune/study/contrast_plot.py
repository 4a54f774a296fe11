"""Two scores of one model side by side, as a figure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pyprune.scoring.agreement import ranks
from pyprune.scoring.contrast import Contrast, named
from pyprune.scoring.scores import Scores
from pyprune.study.figure import add_grid, new_figure, png
from pyprune.study.score_axes import BASELINE, DROPPED, OTHER, WIDEST, block_axis, kinds_of, value_axis


def side_by_side(contrast: Contrast, labels: tuple[str, str] | None = None) -> bytes:
    """PNG of two scores: above, each unit's score over its own baseline and what goes under each; below, the places
    under one against those under the other."""
    labels = labels or (named(contrast.a), named(contrast.b))
    blocks = sorted({index for scores in (contrast.a, contrast.b) for _, index in scores.units})
    figure = new_figure(min(WIDEST, max(11.0, 6.5 + 0.24 * len(blocks))), 5.8)
    grid = figure.add_gridspec(2, 2, width_ratios=[1.7, 1], height_ratios=[5, 1])
    values, strip, scatter = (
        figure.add_subplot(grid[0, 0]),
        figure.add_subplot(grid[1, 0]),
        figure.add_subplot(grid[:, 1]),
    )
    _values_panel(values, contrast, labels, blocks)
    _choices_panel(strip, contrast, blocks)
    _places_panel(scatter, contrast, labels)
    names = ", ".join(dict.fromkeys((contrast.a.model, contrast.b.model)))
    figure.suptitle(f"{names}: what the removal of each unit costs, and what goes, under two scores", fontsize=12)
    figure.legend(*scatter.get_legend_handles_labels(), loc="outside lower right", ncols=4, fontsize=8.5, frameon=False)
    return png(figure)


def _values_panel(panel: Any, contrast: Contrast, labels: tuple[str, str], blocks: list[int]) -> None:
    sides = list(zip((contrast.a, contrast.b), labels, (OTHER, DROPPED), "os", "AB", strict=True))
    values_of, axis_label, line = _common_measure(contrast.a, contrast.b)
    drawn: list[float] = []
    for scores, label, colour, marker, side in sides:
        values = values_of(scores)
        drawn += values
        for kind in kinds_of(scores):
            points = [(i, value) for (other, i), value in zip(scores.units, values, strict=True) if other == kind]
            points = sorted((i, value) for i, value in points if math.isfinite(value))
            title = f"{side}: {label}" + ("" if kind == "block" else f", {kind}")
            style = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.2, "label": title}
            if points:
                panel.plot(*zip(*points, strict=True), linestyle="dashed" if kind == "ffn" else "solid", **style)
    if contrast.a.criterion == contrast.b.criterion:
        value_axis(panel, drawn, line)
    if line is not None:
        panel.axhline(line, color=BASELINE, linewidth=0.9, linestyle=(0, (5, 2)))
    block_axis(panel, blocks)
    panel.set_xlabel("")
    panel.set_ylabel(axis_label)
    # Above the panel: inside, it would cover some of the units.
    panel.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, borderaxespad=0.2)
    add_grid(panel)


def _common_measure(a: Scores, b: Scores) -> tuple[Callable[[Scores], list[float]], str, float | None]:
    """How two scores can be drawn on one axis: their values by it, its words, and the whole model's value on it.

    Perplexities of two texts differ in scale: they are drawn as the share by which they exceed the whole model's, which
    on a log axis also tells the removable units apart; as multiples of it where some removal improves the model. Two
    criteria have no common scale but the places they give.
    """
    if a.criterion != b.criterion:
        return lambda scores: ranks(scores.values), "Place, 1 the most removable", None
    if not all(scores.baseline and scores.baseline > 0 for scores in (a, b)):
        return lambda scores: scores.values, f"{a.criterion}, lowest goes first", None

    def multiples(scores: Scores) -> list[float]:
        assert scores.baseline
        return [value / scores.baseline for value in scores.values]

    if min(*multiples(a), *multiples(b)) > 1:
        axis_label = f"{a.criterion}, increase over the unpruned model's (1 = twice)"
        return lambda scores: [multiple - 1 for multiple in multiples(scores)], axis_label, None
    return multiples, f"{a.criterion} over the unpruned model's", 1.0


def _choices_panel(panel: Any, contrast: Contrast, blocks: list[int]) -> None:
    kinds = kinds_of(contrast.a)
    shift = {kind: 0.24 * (position - (len(kinds) - 1) / 2) for position, kind in enumerate(kinds)}
    for height, units, colour, marker in ((1, contrast.dropped_a, OTHER, "o"), (0, contrast.dropped_b, DROPPED, "s")):
        panel.plot(
            [index + shift.get(kind, 0.0) for kind, index in units], [height] * len(units), marker=marker,
            linestyle="none", markersize=9, color=colour,
        )  # fmt: skip
    for _, index in contrast.both:
        panel.plot([index, index], [0, 1], color="#999999", linewidth=1.0, zorder=0)
    block_axis(panel, blocks)
    panel.set_ylim(-0.6, 1.6)
    panel.set_yticks([0, 1], ["B drops", "A drops"])
    panel.grid(axis="x", color="#eeeeee")
    in_a, in_b, in_both = (len(units) for units in (contrast.dropped_a, contrast.dropped_b, contrast.both))
    panel.set_xlabel(f"Block; A drops {in_a}, B drops {in_b}, {in_both} of them the same")


def _places_panel(panel: Any, contrast: Contrast, labels: tuple[str, str]) -> None:
    groups = {
        "stays under both": ("#BBBBBB", "o"), "goes under both": (BASELINE, "D"), "goes under A alone": (OTHER, "o"),
        "goes under B alone": (DROPPED, "s"),
    }  # fmt: skip
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in groups}
    noted = {difference.unit for difference in contrast.differences[:4]} | {*contrast.only_a, *contrast.only_b}
    several = len({difference.unit[0] for difference in contrast.differences}) > 1
    for difference in contrast.differences:
        a, b = difference.unit in contrast.dropped_a, difference.unit in contrast.dropped_b
        name = list(groups)[1 if a and b else 2 if a else 3 if b else 0]
        points[name].append((difference.place_a, difference.place_b))
        if difference.unit in noted:
            text = f"{difference.unit[0]} {difference.unit[1]}" if several else str(difference.unit[1])
            panel.annotate(
                text, (difference.place_a, difference.place_b), xytext=(5, 4), textcoords="offset points", fontsize=8
            )
    last = contrast.correlation.units
    panel.plot([1, last], [1, last], color="#CCCCCC", linewidth=1.0, zorder=0)
    for name, (colour, marker) in groups.items():
        if points[name]:
            panel.scatter(*zip(*points[name], strict=True), s=34, color=colour, marker=marker, label=name, zorder=2)
    panel.set_aspect("equal")
    panel.margins(0.06)
    panel.set_xlabel(f"Place under A: {labels[0]}", fontsize=9)
    panel.set_ylabel(f"Place under B: {labels[1]}", fontsize=9)
    panel.set_title(f"Places, 1 the most removable\n{_correlations(contrast)}", fontsize=10)
    add_grid(panel)


def _correlations(contrast: Contrast) -> str:
    pairs = (("Spearman", contrast.correlation.spearman), ("Kendall", contrast.correlation.kendall))
    return ", ".join(f"{name} {'none' if value is None else f'{value:.3f}'}" for name, value in pairs)
