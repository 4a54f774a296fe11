"""The width study's figure: what a linear reaches at each width, the paper's Table 1 widths marked."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from pyprune.study.figure import add_grid, legend_below, new_figure, png
from pyprune.study.linears import OURS, PADDED, ROLES, SIDES, TABLE_1, TORCH, flops, weight_bytes
from pyprune.study.machine import device_name

STYLE = {
    TORCH: ("#D55E00", "torch, as it is"),
    PADDED: ("#009E73", "torch, weight padded to a multiple of {multiple}"),
    OURS: ("#0072B2", "pyprune (PaddedLinear)"),
}
"""Colour (Okabe and Ito's palette, told apart by colour-blind readers) and label of each side."""

MOST_BYTES_ROWS = 16
"""Up to so many rows a linear is judged by the bytes that it reads, beyond by its arithmetic."""


def saw_tooth(results: dict[str, Any]) -> bytes:
    """PNG: a line of panels for each number of rows, gate/up on the left and down on the right. Lines are medians over
    the rounds, the bands behind them quartiles; both count the product without padding, so higher is quicker."""
    settings, points = results["settings"], results["points"]
    dtype = getattr(torch, settings["dtype"])
    figure = new_figure(13.0, 1.0 + 3.1 * len(settings["rows"]))
    grid = figure.subplots(len(settings["rows"]), len(ROLES), squeeze=False, sharex=True, sharey="row")
    for line, rows in zip(grid, settings["rows"], strict=True):
        for panel, role in zip(line, ROLES, strict=True):
            role_points = [point for point in points if (point["role"], point["rows"]) == (role, rows)]
            _panel(panel, role_points, role, rows, settings, dtype)
        line[0].set_ylim(bottom=0)
    for panel in grid[-1]:
        panel.set_xlabel("FFN width")
    _legend(figure, grid[0][0], results)
    return png(figure)


def _panel(
    panel: Any, points: list[dict[str, Any]], role: str, rows: int, settings: dict[str, Any], dtype: Any
) -> None:
    by_bytes, hidden = rows <= MOST_BYTES_ROWS, settings["hidden"]
    points = sorted(points, key=lambda point: point["width"])
    widths = [point["width"] for point in points]
    for side in SIDES:
        colour, label = STYLE[side]
        low: list[float] = []
        middle: list[float] = []
        high: list[float] = []
        for point in points:
            width, seconds = point["width"], point["seconds"][side]
            work = weight_bytes(width, hidden, rows, dtype) if by_bytes else flops(width, hidden, rows)
            quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
            for rates, time in zip((high, middle, low), quartiles, strict=True):
                rates.append(work / time / 1e9)
        panel.fill_between(widths, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.plot(
            widths, middle, color=colour, linewidth=1.3, label=label.format(multiple=settings["multiple"]),
            marker="o" if len(widths) < 40 else None, markersize=3.5,
        )  # fmt: skip
    _mark_multiples(panel, settings["multiple"], widths)
    _mark_table_1(panel, hidden, widths)
    shape = f"{hidden} -> width" if role == "gate/up" else f"width -> {hidden}"
    panel.set_title(f"{role} ({shape}), {rows} row{'s' if rows > 1 else ''}", fontsize=10)
    panel.set_ylabel("GB/s" if by_bytes else "GFLOP/s")
    add_grid(panel)


def _mark_multiples(panel: Any, multiple: int, widths: list[int]) -> None:
    inside = range(-(-widths[0] // multiple) * multiple, widths[-1] + 1, multiple) if widths else range(0)
    if len(inside) <= 24:
        for width in inside:
            panel.axvline(width, color="#009E73", linewidth=0.7, alpha=0.6, linestyle="dotted")


def _mark_table_1(panel: Any, hidden: int, widths: list[int]) -> None:
    inside = [width for width in TABLE_1.get(hidden, {}) if widths and widths[0] <= width <= widths[-1]]
    for width in inside:
        panel.axvline(width, color="#555555", linewidth=0.8, linestyle=(0, (4, 2)))
        panel.annotate(
            f"{width}", (width, 0.02), xycoords=("data", "axes fraction"), xytext=(3, 0), textcoords="offset points",
            rotation=90, fontsize=7.5, color="#555555", va="bottom",
        )  # fmt: skip


def _legend(figure: Any, panel: Any, results: dict[str, Any]) -> None:
    settings, here = results["settings"], results["machine"]
    handles, labels = panel.get_legend_handles_labels()
    legend_below(figure, handles, labels, 3)
    where = device_name(here, settings["device"])
    figure.suptitle(
        f"One linear of hidden size {settings['hidden']} in {settings['dtype']} against the FFN width: {where}, "
        f"torch {here['versions']['torch']}\nmedians and quartiles of {settings['rounds']} interleaved rounds; "
        f"dashed: widths of the paper's Table 1; dotted: multiples of {settings['multiple']}",
        fontsize=11,
    )
