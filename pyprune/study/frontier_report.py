"""The Pareto front of comparisons as files: JSON, CSV, a figure, a page."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from html import escape
from typing import Any

from pyprune.files import json_text, whole_directory
from pyprune.study.figure import add_grid, legend_below, new_figure, plain_ticks, png
from pyprune.study.frontier import QUALITIES, Frontier, Point
from pyprune.study.labels import shown_method, styles
from pyprune.study.page import html_page, html_table, inline_figure

AXES = {"ppl": "Perplexity (lower is better)", "accuracy": "Mean accuracy, % (higher is better)"}
FIELDS = (
    "name", "method", "ratio", "source", "quality", "latency_ms", "latency_q3_ms", "tokens_per_s", "size_mb", "fast",
    "small", "scale",
)  # fmt: skip


def save(front: Frontier, directory: str | os.PathLike[str]) -> None:
    """Write `frontier.json`, `frontier.csv`, `frontier.png` and `index.html`; the directory appears whole or not at
    all. InputError when it is taken."""
    image = figure(front)
    with whole_directory(directory) as scratch:
        (scratch / "frontier.json").write_text(json_text(front.to_dict()), encoding="utf-8")
        (scratch / "frontier.csv").write_text(_csv(front), encoding="utf-8")
        (scratch / "frontier.png").write_bytes(image)
        (scratch / "index.html").write_text(_page(front, image), encoding="utf-8")


def cells(front: Frontier) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of all models, the fastest first."""
    header = ["model", "PPL" if front.quality == "ppl" else "acc. %", "ms", "tok/s", "MB", "on the front of"]
    scale = 1 if front.quality == "ppl" else 100
    rows = []
    for point in front.points:
        fronts = [name for name, on in (("latency", point.fast), ("size", point.small)) if on]
        taken = "  <- take this" if point == front.choice else ""
        numbers = (f"{scale * point.quality:.2f}", f"{point.latency_ms:.4g}", f"{point.tokens_per_s:.4g}")
        rows.append([point.name, *numbers, f"{point.size_mb:.4g}", ", ".join(fronts) + taken])
    return header, rows


def figure(front: Frontier) -> bytes:
    """PNG of two panels, quality against latency and against size: all models, the front as steps, the limit and the
    model to take."""
    drawing = new_figure(12.0, 5.6)
    panels = drawing.subplots(1, 2)
    looks = styles(point.method for point in front.points)
    scale = 100 if QUALITIES[front.quality] else 1
    axes = (
        ("latency_ms", "fast", front.latency_ms, f"Latency of {front.batch} x {front.output_tokens} tokens (ms)"),
        ("size_mb", "small", front.size_mb, "Weights (MB)"),
    )
    for panel, (cost, flag, limit, label) in zip(panels, axes, strict=True):
        for point in front.points:
            colour, marker = looks[point.method]
            on_front = getattr(point, flag)
            panel.plot(
                getattr(point, cost), scale * point.quality, marker=marker, markersize=9, color=colour,
                markerfacecolor=colour if on_front else "none", linestyle="none", label=shown_method(point.method),
            )  # fmt: skip
            if on_front:
                panel.annotate(
                    point.name, (getattr(point, cost), scale * point.quality), xytext=(6, 5),
                    textcoords="offset points", fontsize=8,
                )  # fmt: skip
        best = sorted((getattr(point, cost), scale * point.quality) for point in front.points if getattr(point, flag))
        panel.step(*zip(*best, strict=True), where="post", color="#777777", linewidth=1.2)
        if limit is not None:
            panel.axvline(limit, color="#CC3311", linestyle="dashed", linewidth=1.2)
        if front.choice is not None:
            panel.plot(
                getattr(front.choice, cost), scale * front.choice.quality, marker="o", markersize=18,
                markerfacecolor="none", markeredgecolor="#CC3311", linestyle="none",
            )  # fmt: skip
        values = [scale * point.quality for point in front.points]
        if front.quality == "ppl" and max(values) > 8 * min(values):
            panel.set_yscale("log")
            plain_ticks(panel.yaxis)
        panel.margins(0.15)
        panel.set_xlabel(label)
        panel.set_ylabel(AXES[front.quality])
        add_grid(panel)
    handles = dict(zip(*panels[0].get_legend_handles_labels()[::-1], strict=True))
    legend_below(drawing, handles.values(), handles.keys())
    drawing.suptitle(f"{front.model}: filled markers are on the front ({front.engine})")
    return png(drawing)


def _csv(front: Frontier) -> str:
    target = io.StringIO(newline="")
    writer = csv.DictWriter(target, fieldnames=FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_record(point) for point in front.points)
    return target.getvalue()


def _record(point: Point) -> dict[str, Any]:
    return {name: getattr(point, name) for name in FIELDS}


def _page(front: Frontier, image: bytes) -> str:
    sources: Sequence[str] = list(dict.fromkeys(point.source for point in front.points))
    return html_page(
        f"Quality against speed of {front.model}",
        [
            f"<p><strong>{escape(front.sentence)}</strong></p>",
            f"<p>From {escape(', '.join(sources))}. A model is on a front when no other one measured is as good or "
            "better in both, and better in one. Latency is the median for the whole batch; differences within its "
            "spread decide nothing.</p>",
            html_table(*cells(front)),
            inline_figure("The fronts", image),
        ],
    )
