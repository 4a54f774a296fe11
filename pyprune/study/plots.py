"""The comparison's figures, in the manner of the paper's Figure 1 and the lower half of its Figure 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyprune.pruning.method import Style
from pyprune.study.figure import add_grid, inline_svg, legend_below, new_figure, plain_ticks, png
from pyprune.study.labels import ORIGINAL, is_checkpoint, shown_method, styles
from pyprune.study.table import engines, measured, ratios, settings, table

LINES = {"hf": (0, (4, 2)), "pyprune": "solid"}
RATIO_LINES = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5)))


def quality_and_throughput(results: dict[str, Any]) -> bytes:
    """PNG after Figure 1, a line of panels a ratio: perplexity against speed-up at the smallest batch (where some row
    has a perplexity), and throughput against latency over the batch sizes. Open markers and dashes: hf; filled and
    solid: pyprune."""
    groups, panels = ratios(results), _panels(results)
    figure = new_figure(5.5 * len(panels), 4.6 * len(groups))
    grid = figure.subplots(len(groups), len(panels), squeeze=False)
    for line, ratio in zip(grid, groups, strict=True):
        for panel, (draw, _) in zip(line, panels, strict=True):
            draw(panel, results, ratio)
    _legend(figure, line[-1])
    return png(figure)


def has_quality(results: dict[str, Any]) -> bool:
    """Whether some row that was timed has a perplexity, so that it can be drawn against the speed."""
    return any(line.get("ppl") is not None for line in measured(results))


def latency_by_batch(results: dict[str, Any]) -> bytes:
    """PNG after the lower half of Figure 2: latency against batch size, a column of panels for each output length and
    a row of them for each engine."""
    lengths, names = _lengths(results), engines(results)
    # Panels of one output length share their axis, so that the engines can be compared by eye.
    shape = (len(names), len(lengths)) if len(lengths) > 1 else (1, len(names))
    figure = new_figure(5.5 * shape[1], 4.4 * shape[0])
    panels = figure.subplots(*shape, squeeze=False, sharey="col" if len(lengths) > 1 else "row").flat
    for panel, (engine, length) in zip(panels, [(e, n) for e in names for n in lengths], strict=True):
        _latency_panel(panel, results, engine, length)
    _legend(figure, panel)
    return png(figure)


def _panels(results: dict[str, Any]) -> list[tuple[Callable[..., None], str]]:
    """What is drawn of each ratio, and what it is called."""
    panels = [(_quality_panel, "Quality against speed")] if has_quality(results) else []
    return [*panels, (_throughput_panel, "Latency and throughput")]


Drawings = list[tuple[str, str]]
"""Captions, and the SVG elements for a page that they belong to."""


def quality_drawings(results: dict[str, Any]) -> Drawings:
    """The panels of `quality_and_throughput` one by one."""
    drawings = []
    for ratio in ratios(results):
        for draw, what in _panels(results):
            caption = f"{what}, {ratio} of the parameters removed. Hollow: Hugging Face (hf); filled: pyprune."
            drawings.append((caption, _alone(caption, draw, results, ratio)))
    return drawings


def latency_drawings(results: dict[str, Any]) -> Drawings:
    """The panels of `latency_by_batch` one by one."""
    drawings = []
    for engine in engines(results):
        for length in _lengths(results):
            caption = f"Latency against batch size under {engine}, {length} new tokens; bars are quartiles."
            drawings.append((caption, _alone(caption, _latency_panel, results, engine, length)))
    return drawings


def _alone(caption: str, draw: Callable[..., None], *subject: Any) -> str:
    """One panel with its own legend. Its size keeps the letters readable on a telephone."""
    figure = new_figure(5.2, 4.2)
    panel = figure.subplots()
    draw(panel, *subject)
    panel.set_title("")  # the caption says it, and what hollow and filled markers mean
    by_row = {label.removesuffix(", hf").removesuffix(", pyprune"): handle
              for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}  # fmt: skip
    legend_below(figure, by_row.values(), by_row.keys(), 3, fontsize=8.5, frameon=False)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    return inline_svg(figure, caption)


def _lengths(results: dict[str, Any]) -> list[int]:
    return list(dict.fromkeys(length for _, length in settings(results)))


def _latency_panel(panel: Any, results: dict[str, Any], engine: str, length: int) -> None:
    lines, groups, looks = measured(results), ratios(results), _looks(results)
    for row in dict.fromkeys(line["row"] for line in lines):
        row_lines = [
            line for line in lines if (line["row"], line["engine"], line["output_tokens"]) == (row, engine, length)
        ]
        if not row_lines:  # no batch of it fitted into memory
            continue
        row_lines.sort(key=lambda line: line["batch"])
        colour, marker = looks[row_lines[0]["method"]]
        dashes = (
            RATIO_LINES[groups.index(row_lines[0]["ratio"]) % len(RATIO_LINES)] if row_lines[0]["ratio"] else "solid"
        )
        middle = [line["latency_s"] for line in row_lines]
        below = [line["latency_s"] - line["latency_q1_s"] for line in row_lines]
        above = [line["latency_q3_s"] - line["latency_s"] for line in row_lines]
        panel.errorbar(
            [line["batch"] for line in row_lines], middle, yerr=[below, above], label=row, color=colour,
            marker=marker, linestyle=dashes, markersize=6, capsize=3, linewidth=1.5,
        )  # fmt: skip
    _batch_axis(panel, sorted({line["batch"] for line in lines}))
    panel.set_ylabel("Latency of the batch (s)")
    panel.set_ylim(bottom=0)
    panel.set_title(f"{engine}, L = {length} new tokens")
    add_grid(panel)


def _looks(results: dict[str, Any]) -> dict[str, Style]:
    return styles(line["method"] for line in table(results))


def _lines_of(results: dict[str, Any], ratio: str) -> list[dict[str, Any]]:
    """The timed lines of one ratio, with those of the original and of checkpoints."""
    return [
        line
        for line in measured(results)
        if line["row"] == ORIGINAL or line["ratio"] == ratio or is_checkpoint(line["method"])
    ]


def _quality_panel(panel: Any, results: dict[str, Any], ratio: str) -> None:
    lines, looks = _lines_of(results, ratio), _looks(results)
    batch = min((line["batch"] for line in lines), default=0)
    length = min((line["output_tokens"] for line in lines), default=0)
    shown = [line for line in lines if (line["batch"], line["output_tokens"]) == (batch, length)]
    for line in shown:
        if line.get("ppl") is not None and line["speedup"] is not None:
            colour, marker = looks[line["method"]]
            face = colour if line["engine"] == "pyprune" else "none"
            panel.plot(
                line["speedup"], line["ppl"], marker=marker, markersize=10, markerfacecolor=face,
                markeredgecolor=colour, markeredgewidth=1.8, linestyle="none",
                label=f"{shown_method(line['method'])}, {line['engine']}",
            )  # fmt: skip
    finite = [line["ppl"] for line in shown if line.get("ppl") is not None]
    if finite and max(finite) > 8 * min(finite):
        panel.set_yscale("log")
        plain_ticks(panel.yaxis)
    panel.axvline(1.0, color="#999999", linewidth=0.8, linestyle="dotted")
    panel.margins(0.12)
    panel.set_xlabel(f"Speed-up over the original, same engine, M = {batch}, L = {length}")
    panel.set_ylabel("Held-out perplexity (lower is better)")
    panel.set_title(f"{ratio} of the parameters removed: quality against speed")
    add_grid(panel)


def _throughput_panel(panel: Any, results: dict[str, Any], ratio: str) -> None:
    lines, looks = _lines_of(results, ratio), _looks(results)
    length = min((line["output_tokens"] for line in lines), default=0)
    for row, engine in dict.fromkeys((line["row"], line["engine"]) for line in lines):
        row_lines = [
            line for line in lines if (line["row"], line["engine"], line["output_tokens"]) == (row, engine, length)
        ]
        if not row_lines:
            continue
        row_lines.sort(key=lambda line: line["batch"])
        colour, marker = looks[row_lines[0]["method"]]
        panel.plot(
            [line["latency_s"] for line in row_lines], [line["tokens_per_s"] for line in row_lines], color=colour,
            marker=marker, linestyle=LINES.get(engine, "solid"),
            markerfacecolor=colour if engine == "pyprune" else "none", markersize=7, linewidth=1.4,
            label=f"{shown_method(row_lines[0]['method'])}, {engine}",
        )  # fmt: skip
        if row == ORIGINAL:
            for line in row_lines:
                panel.annotate(
                    f"M={line['batch']}", (line["latency_s"], line["tokens_per_s"]), xytext=(7, -5),
                    textcoords="offset points", va="top", fontsize=9, color=colour,
                )  # fmt: skip
    panel.margins(0.12)
    # On logarithmic axes the engines' points lie apart however much faster one of them is.
    for axis, set_scale in ((panel.xaxis, panel.set_xscale), (panel.yaxis, panel.set_yscale)):
        set_scale("log")
        plain_ticks(axis)
    panel.set_xlabel(f"Latency of the batch (s), L = {length}")
    panel.set_ylabel("Throughput (tokens/s)")
    panel.set_title(f"{ratio} removed: latency and throughput over batch sizes M")
    add_grid(panel)


def _batch_axis(panel: Any, batches: list[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xticks(batches, [str(batch) for batch in batches])
    panel.minorticks_off()
    panel.set_xlabel("Batch size M (prompts)")


def _legend(figure: Any, panel: Any) -> None:
    legend_below(figure, *panel.get_legend_handles_labels())  # the panels show the same rows
