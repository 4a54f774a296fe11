"""The comparison's figures, in the manner of the paper's Figure 1 and the lower half of its Figure 2."""

from __future__ import annotations

from typing import Any

from pyprune.pruning.method import Style
from pyprune.study.figure import add_grid, new_figure, png
from pyprune.study.labels import ORIGINAL, is_checkpoint, shown_method, styles
from pyprune.study.table import engines, measured, ratios, settings, table

LINES = {"hf": (0, (4, 2)), "pyprune": "solid"}
RATIO_LINES = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5)))


def quality_and_throughput(results: dict[str, Any]) -> bytes:
    """PNG after Figure 1, a line of two panels a ratio: perplexity against speed-up at the smallest batch, and
    throughput against latency over the batch sizes. Open markers and dashes: hf; filled and solid: pyprune."""
    lines, groups = measured(results), ratios(results)
    looks = styles(line["method"] for line in table(results))
    figure = new_figure(11.0, 4.6 * len(groups))
    grid = figure.subplots(len(groups), 2, squeeze=False)
    for (left, right), ratio in zip(grid, groups, strict=True):
        shown = [
            line for line in lines if line["row"] == ORIGINAL or line["ratio"] == ratio or is_checkpoint(line["method"])
        ]
        _quality_panel(left, shown, ratio, looks)
        _throughput_panel(right, shown, ratio, looks)
    _legend(figure, right)
    return png(figure)


def latency_by_batch(results: dict[str, Any]) -> bytes:
    """PNG after the lower half of Figure 2: latency against batch size, a column of panels for each output length and
    a row of them for each engine."""
    lines, groups = measured(results), ratios(results)
    looks = styles(line["method"] for line in table(results))
    lengths = list(dict.fromkeys(length for _, length in settings(results)))
    names = engines(results)
    # Panels of one output length share their axis, so that the engines can be compared by eye.
    shape = (len(names), len(lengths)) if len(lengths) > 1 else (1, len(names))
    figure = new_figure(5.5 * shape[1], 4.4 * shape[0])
    panels = figure.subplots(*shape, squeeze=False, sharey="col" if len(lengths) > 1 else "row").flat
    for panel, (engine, length) in zip(panels, [(e, n) for e in names for n in lengths], strict=True):
        for row in dict.fromkeys(line["row"] for line in lines):
            row_lines = [
                line for line in lines if (line["row"], line["engine"], line["output_tokens"]) == (row, engine, length)
            ]
            if not row_lines:  # no batch of it fitted into memory
                continue
            row_lines.sort(key=lambda line: line["batch"])
            colour, marker = looks[row_lines[0]["method"]]
            dashes = (
                RATIO_LINES[groups.index(row_lines[0]["ratio"]) % len(RATIO_LINES)]
                if row_lines[0]["ratio"]
                else "solid"
            )
            middle = [line["latency_s"] for line in row_lines]
            below = [line["latency_s"] - line["latency_q1_s"] for line in row_lines]
            above = [line["latency_q3_s"] - line["latency_s"] for line in row_lines]
            panel.errorbar(
                [line["batch"] for line in row_lines], middle, yerr=[below, above], label=row, color=colour,
                marker=marker, linestyle=dashes, markersize=6, capsize=3, linewidth=1.5,
            )  # fmt: skip
        _batch_axis(panel, sorted({line["batch"] for line in lines}))
        panel.set_ylabel("Latency of the batch (s), median and quartiles")
        panel.set_ylim(bottom=0)
        panel.set_title(f"{engine}, L = {length} new tokens")
        add_grid(panel)
    _legend(figure, panel)
    return png(figure)


def _quality_panel(panel: Any, lines: list[dict[str, Any]], ratio: str, looks: dict[str, Style]) -> None:
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
        panel.yaxis.set_major_formatter("{x:g}")
    panel.axvline(1.0, color="#999999", linewidth=0.8, linestyle="dotted")
    panel.margins(0.12)
    panel.set_xlabel(f"Speed-up over the original under the same engine (x), M = {batch}, L = {length}")
    panel.set_ylabel("Perplexity on the held-out text (lower is better)")
    panel.set_title(f"{ratio} of the parameters removed: quality against speed")
    add_grid(panel)


def _throughput_panel(panel: Any, lines: list[dict[str, Any]], ratio: str, looks: dict[str, Style]) -> None:
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
                    f"M={line['batch']}", (line["latency_s"], line["tokens_per_s"]), xytext=(7, -11),
                    textcoords="offset points", fontsize=8, color=colour,
                )  # fmt: skip
    panel.margins(0.12)
    panel.set_ylim(bottom=0)
    panel.set_xlim(left=0)
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
    # One legend below the panels: they show the same rows, and inside it would cover some of them.
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
