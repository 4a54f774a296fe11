"""Scores as figures: bars for each block in the manner of the paper's Figure 4, and a map of several scores."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from pyprune.pruning import depth
from pyprune.pruning.depth import protected_blocks
from pyprune.scoring.agreement import ranks
from pyprune.scoring.contrast import Unit, dropped_units
from pyprune.scoring.scores import Scores
from pyprune.study.figure import add_grid, legend_below, new_figure, png
from pyprune.study.score_axes import (
    BASELINE,
    DROPPED,
    HATCHES,
    KEPT,
    PROTECTED,
    WIDEST,
    block_axis,
    kinds_of,
    value_axis,
)

NUMBERED_COLUMNS = 48
"""Blocks up to which the cells of a map hold numbers that can be read."""


def bars(scores: Scores, dropped: Collection[Unit] = (), protected: Collection[Unit] = ()) -> bytes:
    """PNG after Figure 4: a bar for each unit over its block, the baseline a line, what goes and what must stay marked.

    dropped, protected: units, each (kind, block). The axis is logarithmic where all scores are positive and spread. An
    infinite score reaches the top and is marked.
    """
    kinds = kinds_of(scores)
    blocks = sorted({index for _, index in scores.units})
    figure = new_figure(min(WIDEST, max(7.0, 2.5 + 0.28 * len(blocks) * max(1.0, 0.7 * len(kinds)))), 4.6)
    panel = figure.subplots()
    bottom, top = value_axis(panel, scores.values, scores.baseline)
    width = 0.8 / len(kinds)
    for (kind, index), value in zip(scores.units, scores.values, strict=True):
        gone = (kind, index) in dropped
        colour = DROPPED if gone else PROTECTED if (kind, index) in protected else KEPT
        start = bottom if panel.get_yscale() == "log" else 0.0
        endless = not math.isfinite(value)
        height = (min(max(value, bottom), top) if endless else value) - start
        place = index + (kinds.index(kind) - (len(kinds) - 1) / 2) * width
        panel.bar(place, height, width * 0.92, bottom=start, color=colour, hatch=HATCHES[kind], edgecolor="white")
        if endless:
            panel.text(place, start + height, "∞" if value > 0 else "-∞", ha="center", va="bottom", fontsize=9)
    if scores.baseline is not None and math.isfinite(scores.baseline):
        panel.axhline(scores.baseline, color=BASELINE, linewidth=1.1, linestyle=(0, (5, 2)))
    block_axis(panel, blocks)
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
        kinds = kinds_of(one)
        for kind in kinds:
            kind_places = {index: place for (other, index), place in places.items() if other == kind}
            title = label if len(kinds) == 1 and kind == "block" else f"{label}, {kind}"
            lines.append((title, kind_places, len(one.units), {index for other, index in gone if other == kind}))
    blocks = sorted({index for _, kind_places, _, _ in lines for index in kind_places})
    figure = new_figure(min(WIDEST, 3.6 + 0.32 * len(blocks)), 1.9 + 0.42 * len(lines))
    panel = figure.subplots()
    shares = [
        [(kind_places[i] - 1) / max(1, count - 1) if i in kind_places else math.nan for i in blocks]
        for _, kind_places, count, _ in lines
    ]
    image = panel.imshow(shares, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
    panel.set_facecolor("#eeeeee")  # a block without a score
    for row, (_, kind_places, _, framed) in enumerate(lines):
        for column, index in enumerate(blocks):
            if index in kind_places and len(blocks) <= NUMBERED_COLUMNS:
                shade = "white" if shares[row][column] > 0.55 else "#222222"
                panel.text(column, row, f"{kind_places[index]:g}", ha="center", va="center", fontsize=7.5, color=shade)
            if index in framed:
                frame = Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=DROPPED, linewidth=2.0)
                panel.add_patch(frame)
    panel.set_xticks(range(len(blocks)), [str(index) for index in blocks], fontsize=8)
    panel.set_yticks(range(len(lines)), [title for title, *_ in lines], fontsize=9)
    panel.tick_params(length=0)
    panel.set_xlabel("Block")
    models = ", ".join(dict.fromkeys(one.model for one in scores))
    what_goes = "; framed: what goes" if any(framed for *_, framed in lines) else ""
    panel.set_title(f"{models}: places of the units, 1 the most removable{what_goes}")
    bar = figure.colorbar(image, ax=panel, ticks=[0, 1], pad=0.01, fraction=0.03)
    bar.ax.set_yticklabels(["most\nremovable", "least"], fontsize=8)
    return png(figure)


def _measure(scores: Scores) -> str:
    return "Perplexity without the unit" if scores.criterion == "ppl" else f"{scores.criterion}, lowest goes first"


def _size(scores: Scores) -> str:
    sizes = scores.calibration.get("samples"), scores.calibration.get("seq_len")
    return "on" if None in sizes else f"on {sizes[0]} x {sizes[1]} tokens of"


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
        label = f"unpruned model: {scores.baseline:.4g}"
        handles.append(Line2D([], [], color=BASELINE, linewidth=1.1, linestyle=(0, (5, 2)), label=label))
    return handles


def _legend(figure: Any, handles: list[Any]) -> None:
    if handles:
        legend_below(figure, handles, [handle.get_label() for handle in handles], len(handles), frameon=False)
