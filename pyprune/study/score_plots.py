"""Scores as figures: bars for each block in the manner of the paper's Figure 4, a map of several criteria, and two
scores side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from pyprune.pruning import depth
from pyprune.pruning.depth import protected_blocks
from pyprune.scoring.agreement import ranks
from pyprune.scoring.contrast import Contrast, Unit, dropped_units, named
from pyprune.scoring.scores import Scores
from pyprune.study.figure import add_grid, new_figure, png

KEPT, DROPPED, PROTECTED, BASELINE, OTHER = "#7FA8C9", "#D55E00", "#C8C8C8", "#222222", "#0072B2"
"""Okabe and Ito's vermilion and blue mark what matters; they can be told apart by colour-blind readers."""
HATCHES = {"block": "", "mha": "", "ffn": "///"}
SPREAD = 20
"""Positive scores whose largest is so many times the smallest are drawn on a log scale."""
NUMBERED_COLUMNS = 48
"""Blocks up to which the cells of a map hold numbers that can be read."""
WIDEST = 17.0
"""Inches; figures of deep models grow narrower bars instead."""


def bars(scores: Scores, dropped: Collection[Unit] = (), protected: Collection[Unit] = ()) -> bytes:
    """PNG after Figure 4: a bar for each unit over its block, the baseline a line, what goes and what must stay marked.

    dropped, protected: units, each (kind, block). The axis is logarithmic where all scores are positive and spread. An
    infinite score reaches the top and is marked.
    """
    kinds = sorted({kind for kind, _ in scores.units}, key=tuple(HATCHES).index)
    blocks = sorted({index for _, index in scores.units})
    figure = new_figure(min(WIDEST, max(7.0, 2.5 + 0.28 * len(blocks) * max(1.0, 0.7 * len(kinds)))), 4.6)
    panel = figure.subplots()
    bottom, top = _value_axis(panel, scores.values, scores.baseline)
    width = 0.8 / len(kinds)
    for (kind, index), value in zip(scores.units, scores.values, strict=True):
        gone = (kind, index) in dropped
        colour = DROPPED if gone else PROTECTED if (kind, index) in protected else KEPT
        start = bottom if panel.get_yscale() == "log" else 0.0
        height = (value if math.isfinite(value) else top) - start
        place = index + (kinds.index(kind) - (len(kinds) - 1) / 2) * width
        panel.bar(place, height, width * 0.92, bottom=start, color=colour, hatch=HATCHES[kind], edgecolor="white")
        if not math.isfinite(value):
            panel.text(place, top, "∞", ha="center", va="bottom", fontsize=9)
    if scores.baseline is not None and math.isfinite(scores.baseline):
        panel.axhline(scores.baseline, color=BASELINE, linewidth=1.1, linestyle=(0, (5, 2)))
    _block_axis(panel, blocks)
    add_grid(panel)
    panel.grid(axis="x", visible=False)
    panel.set_ylabel(_measure(scores))
    source = scores.calibration.get("source")
    panel.set_title(
        f"{scores.model}: {scores.criterion}, unit {scores.unit}" + (f"\n{_size(scores)} {source}" if source else "")
    )
    _legend(figure, _bar_legend(scores, kinds, dropped, protected))
    return png(figure)


def chosen_bars(
    scores: Scores, *, ratio: float | None = None, count: int | None = None, protect: str | None = None
) -> bytes:
    """`bars`, with what `pyprune.depth` would remove marked where a ratio or a count is given. Errors as there."""
    blocks = protected_blocks(protect, [index for _, index in scores.units])
    protected = {*scores.protected, *(unit for unit in scores.units if unit[1] in blocks)}
    return bars(scores, chosen(scores, ratio=ratio, count=count, protect=protect), protected)


def chosen(scores: Scores, **amount: Any) -> list[Unit]:
    """The units that `pyprune.depth` would remove; none without a ratio or a count."""
    if amount.get("ratio") is None and amount.get("count") is None:
        return []
    return dropped_units(scores, depth(scores, **amount))


def heat_map(scores: Sequence[Scores], labels: Sequence[str], dropped: Sequence[Collection[Unit]] = ()) -> bytes:
    """PNG: a line for each of several scores (and each kind of unit in it), a column for each block, the place of the
    unit as number and colour, 1 the most removable; `dropped`, for each of the scores, is framed."""
    from matplotlib.patches import Rectangle

    lines: list[tuple[str, dict[int, float], int, set[int]]] = []
    for position, (one, label) in enumerate(zip(scores, labels, strict=True)):
        places = dict(zip(one.units, ranks(one.values), strict=True))
        gone = set(dropped[position]) if dropped else set()
        kinds = sorted({kind for kind, _ in one.units}, key=tuple(HATCHES).index)
        for kind in kinds:
            own = {index: place for (other, index), place in places.items() if other == kind}
            title = label if len(kinds) == 1 and kind == "block" else f"{label}, {kind}"
            lines.append((title, own, len(one.units), {index for other, index in gone if other == kind}))
    blocks = sorted({index for _, own, _, _ in lines for index in own})
    figure = new_figure(min(WIDEST, 3.6 + 0.32 * len(blocks)), 1.9 + 0.42 * len(lines))
    panel = figure.subplots()
    shares = [
        [(own[i] - 1) / max(1, count - 1) if i in own else math.nan for i in blocks] for _, own, count, _ in lines
    ]
    image = panel.imshow(shares, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
    panel.set_facecolor("#eeeeee")  # a block without a score
    for row, (_, own, _, gone) in enumerate(lines):
        for column, index in enumerate(blocks):
            if index in own and len(blocks) <= NUMBERED_COLUMNS:
                shade = "white" if shares[row][column] > 0.55 else "#222222"
                panel.text(column, row, f"{own[index]:g}", ha="center", va="center", fontsize=7.5, color=shade)
            if index in gone:
                frame = Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=DROPPED, linewidth=2.0)
                panel.add_patch(frame)
    panel.set_xticks(range(len(blocks)), [str(index) for index in blocks], fontsize=8)
    panel.set_yticks(range(len(lines)), [title for title, *_ in lines], fontsize=9)
    panel.tick_params(length=0)
    panel.set_xlabel("Block")
    models = ", ".join(dict.fromkeys(one.model for one in scores))
    framed = "; framed: what goes" if any(gone for *_, gone in lines) else ""
    panel.set_title(f"{models}: places of the units, 1 the most removable{framed}")
    bar = figure.colorbar(image, ax=panel, ticks=[0, 1], pad=0.01, fraction=0.03)
    bar.ax.set_yticklabels(["most\nremovable", "least"], fontsize=8)
    return png(figure)


def side_by_side(found: Contrast, labels: tuple[str, str] | None = None) -> bytes:
    """PNG of two scores: above, each unit's score over its own baseline and what goes under each; below, the places
    under one against those under the other."""
    labels = labels or (named(found.a), named(found.b))
    blocks = sorted({index for scores in (found.a, found.b) for _, index in scores.units})
    figure = new_figure(min(WIDEST, max(11.0, 6.5 + 0.24 * len(blocks))), 5.8)
    grid = figure.add_gridspec(2, 2, width_ratios=[1.7, 1], height_ratios=[5, 1])
    values, strip, scatter = (
        figure.add_subplot(grid[0, 0]),
        figure.add_subplot(grid[1, 0]),
        figure.add_subplot(grid[:, 1]),
    )
    _values_panel(values, found, labels, blocks)
    _choices_panel(strip, found, blocks)
    _places_panel(scatter, found, labels)
    names = ", ".join(dict.fromkeys((found.a.model, found.b.model)))
    figure.suptitle(f"{names}: what the removal of each unit costs, and what goes, under two scores", fontsize=12)
    figure.legend(*scatter.get_legend_handles_labels(), loc="outside lower right", ncols=4, fontsize=8.5, frameon=False)
    return png(figure)


def _values_panel(panel: Any, found: Contrast, labels: tuple[str, str], blocks: list[int]) -> None:
    sides = list(zip((found.a, found.b), labels, (OTHER, DROPPED), "os", "AB", strict=True))
    values_of, words, line = _common_measure(found.a, found.b)
    drawn: list[float] = []
    for scores, label, colour, marker, side in sides:
        values = values_of(scores)
        drawn += values
        for kind in sorted({kind for kind, _ in scores.units}, key=tuple(HATCHES).index):
            own = [(i, value) for (other, i), value in zip(scores.units, values, strict=True) if other == kind]
            own = sorted((i, value) for i, value in own if math.isfinite(value))
            title = f"{side}: {label}" + ("" if kind == "block" else f", {kind}")
            style = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.2, "label": title}
            if own:
                panel.plot(*zip(*own, strict=True), linestyle="dashed" if kind == "ffn" else "solid", **style)
    if found.a.criterion == found.b.criterion:
        _value_axis(panel, drawn, line)
    if line is not None:
        panel.axhline(line, color=BASELINE, linewidth=0.9, linestyle=(0, (5, 2)))
    _block_axis(panel, blocks)
    panel.set_xlabel("")
    panel.set_ylabel(words)
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
        words = f"{a.criterion}, increase over the whole model's (1 = twice)"
        return lambda scores: [multiple - 1 for multiple in multiples(scores)], words, None
    return multiples, f"{a.criterion} over the whole model's", 1.0


def _choices_panel(panel: Any, found: Contrast, blocks: list[int]) -> None:
    kinds = sorted({kind for kind, _ in found.a.units}, key=tuple(HATCHES).index)
    shift = {kind: 0.24 * (position - (len(kinds) - 1) / 2) for position, kind in enumerate(kinds)}
    for height, units, colour, marker in ((1, found.dropped_a, OTHER, "o"), (0, found.dropped_b, DROPPED, "s")):
        panel.plot(
            [index + shift.get(kind, 0.0) for kind, index in units], [height] * len(units), marker=marker,
            linestyle="none", markersize=9, color=colour,
        )  # fmt: skip
    for _, index in found.both:
        panel.plot([index, index], [0, 1], color="#999999", linewidth=1.0, zorder=0)
    _block_axis(panel, blocks)
    panel.set_ylim(-0.6, 1.6)
    panel.set_yticks([0, 1], ["B drops", "A drops"])
    panel.grid(axis="x", color="#eeeeee")
    panel.set_xlabel(
        f"Block; A drops {len(found.dropped_a)}, B drops {len(found.dropped_b)}, {len(found.both)} of them the same"
    )


def _places_panel(panel: Any, found: Contrast, labels: tuple[str, str]) -> None:
    groups = {
        "stays under both": ("#BBBBBB", "o"), "goes under both": (BASELINE, "D"), "goes under A alone": (OTHER, "o"),
        "goes under B alone": (DROPPED, "s"),
    }  # fmt: skip
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in groups}
    noted = {one.unit for one in found.differences[:4]} | {*found.only_a, *found.only_b}
    several = len({one.unit[0] for one in found.differences}) > 1
    for one in found.differences:
        a, b = one.unit in found.dropped_a, one.unit in found.dropped_b
        name = list(groups)[1 if a and b else 2 if a else 3 if b else 0]
        points[name].append((one.place_a, one.place_b))
        if one.unit in noted:
            text = f"{one.unit[0]} {one.unit[1]}" if several else str(one.unit[1])
            panel.annotate(text, (one.place_a, one.place_b), xytext=(5, 4), textcoords="offset points", fontsize=8)
    last = found.correlation.units
    panel.plot([1, last], [1, last], color="#CCCCCC", linewidth=1.0, zorder=0)
    for name, (colour, marker) in groups.items():
        if points[name]:
            panel.scatter(*zip(*points[name], strict=True), s=34, color=colour, marker=marker, label=name, zorder=2)
    panel.set_aspect("equal")
    panel.margins(0.06)
    panel.set_xlabel(f"Place under A: {labels[0]}", fontsize=9)
    panel.set_ylabel(f"Place under B: {labels[1]}", fontsize=9)
    panel.set_title(f"Places, 1 the most removable\n{_correlations(found)}", fontsize=10)
    add_grid(panel)


def _value_axis(panel: Any, values: Sequence[float], baseline: float | None) -> tuple[float, float]:
    """Scale the axis for the values; its bottom and the height of an infinite bar."""
    finite = [value for value in (*values, *([] if baseline is None else [baseline])) if math.isfinite(value)] or [1.0]
    low, high = min(finite), max(finite)
    if low > 0 and high > SPREAD * low:
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
        bottom, top = low / (high / low) ** 0.06, high * (high / low) ** 0.06
    else:
        room = 0.08 * (max(high, 0.0) - min(low, 0.0) or 1.0)
        bottom, top = min(low - room, 0.0) if low < 0 else 0.0, max(high + room, 0.0)
    panel.set_ylim(bottom, top)
    return bottom, top


def _block_axis(panel: Any, blocks: Sequence[int]) -> None:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if len(blocks) <= 40 * step or step == 100)
    ticks = [index for index in blocks if index % step == 0]
    panel.set_xticks(ticks, [str(index) for index in ticks], fontsize=8)
    panel.set_xlim(blocks[0] - 0.7, blocks[-1] + 0.7)
    panel.set_xlabel("Block")


def _measure(scores: Scores) -> str:
    return "Perplexity without the unit" if scores.criterion == "ppl" else f"{scores.criterion}, lowest goes first"


def _size(scores: Scores) -> str:
    sizes = scores.calibration.get("samples"), scores.calibration.get("seq_len")
    return "on" if None in sizes else f"on {sizes[0]} x {sizes[1]} tokens of"


def _correlations(found: Contrast) -> str:
    pairs = (("Spearman", found.correlation.spearman), ("Kendall", found.correlation.kendall))
    return ", ".join(f"{name} {'none' if value is None else f'{value:.3f}'}" for name, value in pairs)


def _bar_legend(
    scores: Scores, kinds: Sequence[str], dropped: Collection[Unit], protected: Collection[Unit]
) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    if dropped:
        handles.append(Patch(color=DROPPED, label="goes"))
    if protected:
        handles.append(Patch(color=PROTECTED, label="protected"))
    if handles:
        handles.append(Patch(color=KEPT, label="stays"))
    if len(kinds) > 1:
        handles += [Patch(facecolor="#888888", edgecolor="white", hatch=HATCHES[kind], label=kind) for kind in kinds]
    if scores.baseline is not None and math.isfinite(scores.baseline):
        label = f"whole model: {scores.baseline:.4g}"
        handles.append(Line2D([], [], color=BASELINE, linewidth=1.1, linestyle=(0, (5, 2)), label=label))
    return handles


def _legend(figure: Any, handles: list[Any]) -> None:
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
