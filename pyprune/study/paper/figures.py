"""The speed parts of the paper's Figures 1, 2 and 6 from measured files, and what they show beside them.

The paper prints no numbers for its curves: its own points are those that Table 2 (or 4) repeats, at batch 1.
"""

from __future__ import annotations

import statistics
from typing import Any, Literal

from pyprune.study.alignment import MOST_BYTES_ROWS, work
from pyprune.study.figure import add_grid, legend_below, new_figure, plain_ticks, png
from pyprune.study.labels import style_of
from pyprune.study.paper import facts
from pyprune.study.paper.evidence import GENERATION, STEP, Evidence, Timing
from pyprune.study.paper.verdicts import TOLERANCE, by_bytes, paper_gpu

ENGINES = {"hf": "HF eager", "pyprune": "pyprune"}
Dashes = Literal["solid"] | tuple[int, tuple[float, ...]]
"""How matplotlib draws a line: whole, or by an offset and the lengths of dashes and gaps."""

LINES: dict[tuple[str, str], Dashes] = {
    ("hf", GENERATION): (0, (4, 2)),
    ("pyprune", GENERATION): "solid",
    ("pyprune", STEP): (0, (1, 1.5)),
}
SHADES = {(GENERATION, "hf"): 0.3, (GENERATION, "pyprune"): 0.65, (STEP, "pyprune"): 1.0}
"""How much of a row's colour each of its bars has."""

ROWS = (facts.ORIGINAL, *facts.METHODS)
PAPER_MARK = "*"
FAINT = 0.4
SIDE_COLOURS = ("#D55E00", "#E69F00", "#009E73", "#56B4E9", "#0072B2", "#CC79A7")


def latency(timing: Timing) -> float:
    """Seconds for all new tokens: measured, or so many replayed steps (then without the prompt's pass)."""
    median = statistics.median(timing.seconds)
    return median if timing.kind == GENERATION else median * timing.new_tokens


def curve(evidence: Evidence, method: str, ratio: str | None, engine: str, kind: str) -> list[Timing]:
    """A packed row's timings over the batches, of the paper's number of new tokens where there are several."""
    by_batch = {
        timing.batch: timing
        for timing in evidence.timings
        if (timing.row.key, timing.engine, timing.kind) == ((method, ratio, "packed"), engine, kind)
        and (evidence.dry_run or timing.new_tokens == facts.NEW_TOKENS)
    }
    return [by_batch[batch] for batch in sorted(by_batch)]


def figure_1(evidence: Evidence) -> bytes:
    """After Figure 1, speed alone, of the first ratio: speed-ups at batch 1, and latency against throughput."""
    ratio = facts.ratios(evidence.model)[0]
    figure = new_figure(12.0, 4.9)
    left, right = figure.subplots(1, 2)
    _bars(left, evidence, ratio)
    _trade_off(right, evidence, ratio)
    return _finished(figure, evidence, f"After Figure 1: {ratio} of {facts.MODELS[evidence.model]}", _handles(ROWS))


def figure_2(evidence: Evidence) -> bytes:
    """After the lower half of Figure 2: latency against the batch, of the second ratio, as in the paper."""
    ratio = facts.ratios(evidence.model)[1]
    figure = new_figure(9.6, 4.9)
    panel = figure.subplots()
    batches: set[int] = set()
    shown = (facts.ORIGINAL, "depth", "llm-pruner")
    for method in shown:
        for (engine, kind), dashes in LINES.items():
            timings = curve(evidence, method, None if method == facts.ORIGINAL else ratio, engine, kind)
            batches |= {timing.batch for timing in timings}
            colour, marker = style_of(method)
            if timings:
                face = colour if kind == GENERATION and engine == "pyprune" else "none"
                panel.plot(
                    [timing.batch for timing in timings], [latency(timing) for timing in timings], color=colour,
                    marker=marker, linestyle=dashes, markerfacecolor=face,
                )  # fmt: skip
        paper = facts.speed(evidence.model, None if method == facts.ORIGINAL else ratio, method, paper_gpu(evidence))
        if paper is not None and paper.latency_s is not None:
            _paper_point(panel, 1, paper.latency_s, method)
            batches.add(1)
    panel.set_xscale("log", base=2)
    panel.set_xticks(sorted(batches), [str(batch) for batch in sorted(batches)])
    panel.minorticks_off()
    panel.set_ylim(bottom=0)
    panel.set_xlabel("Batch size M (prompts)")
    panel.set_ylabel(f"Latency of the batch (s), L = {facts.NEW_TOKENS}")
    add_grid(panel)
    return _finished(figure, evidence, f"After Figure 2: {ratio} of {facts.MODELS[evidence.model]}", _handles(shown))


def figure_6(evidence: Evidence) -> bytes:
    """After Figure 6: latency against throughput, a panel for each ratio."""
    ratios = facts.ratios(evidence.model)
    figure = new_figure(5.0 * len(ratios), 4.9)
    panels = figure.subplots(1, len(ratios))
    for panel, ratio in zip(panels, ratios, strict=True):
        _trade_off(panel, evidence, ratio)
    return _finished(figure, evidence, f"After Figure 6: {facts.MODELS[evidence.model]}", _handles(ROWS))


def equal_bytes(evidence: Evidence) -> bytes:
    """Each row's speed-up against the one that its bytes predict, a panel for each batch; on the line is all that bytes
    can give. The paper's points lie where its row's bytes are."""
    batches = sorted({timing.batch for timing in evidence.timings if timing.kind == STEP}) or [1]
    figure = new_figure(5.6 * len(batches), 5.2)
    panels = figure.subplots(1, len(batches), squeeze=False)[0]
    for panel, batch in zip(panels, batches, strict=True):
        _equal_panel(panel, evidence, batch)
    handles = _handles(facts.METHODS, ways=False, layouts=True)
    return _finished(figure, evidence, "Speed-up over the original against what the bytes predict", handles)


def _equal_panel(panel: Any, evidence: Evidence, batch: int) -> None:
    values = [1.0]
    for timing in evidence.timings:
        predicted, gain = by_bytes(evidence, timing), timing.gain
        if (timing.kind, timing.batch) != (STEP, batch) or timing.row.method == facts.ORIGINAL or gain is None:
            continue
        assert predicted is not None
        colour, marker = style_of(timing.row.method)
        hollow = timing.row.layout == "packed" and timing.row.method != "depth"
        panel.plot(
            predicted, gain["median"], marker=marker, color=colour, linestyle="none", markersize=8,
            markerfacecolor="none" if hollow else colour, markeredgewidth=1.6,
            alpha=FAINT if timing.row.layout == "64" else 1.0,
        )  # fmt: skip
        values += [predicted, gain["median"]]
        printed = facts.speedup(evidence.model, timing.row.ratio, timing.row.method, paper_gpu(evidence))
        if batch == 1 and timing.row.layout == "packed" and printed is not None:
            _paper_point(panel, predicted, printed, timing.row.method)
            values.append(printed)
    low, high = min(values) - 0.05, max(values) + 0.05
    panel.plot([low, high], [low, high], color="#999999", linewidth=1.0)
    panel.fill_between(
        [low, high], [low * (1 - TOLERANCE), high * (1 - TOLERANCE)], [low * (1 + TOLERANCE), high * (1 + TOLERANCE)],
        color="#999999", alpha=0.15, linewidth=0,
    )  # fmt: skip
    panel.axhline(1.0, color="#999999", linewidth=0.8, linestyle="dotted")
    panel.set_xlabel("Speed-up that the bytes of a step predict (x)")
    panel.set_ylabel("Measured speed-up of a step (x)")
    panel.set_title(f"M = {batch}: replayed steps; band: 3 %", fontsize=10)
    add_grid(panel)


def _bars(panel: Any, evidence: Evidence, ratio: str) -> None:
    gpu = paper_gpu(evidence)
    for place, method in enumerate(facts.METHODS):
        colour, _ = style_of(method)
        paper = facts.speedup(evidence.model, ratio, method, gpu)
        heights = [(paper, "#ffffff", "///")]
        predicted = None
        for (kind, engine), alpha in SHADES.items():
            timing = evidence.timing(method, ratio, engine, kind)
            gain = None if timing is None else timing.gain
            heights.append((None if gain is None else gain["median"], _blend(colour, alpha), ""))
            predicted = by_bytes(evidence, timing) if timing is not None else predicted
        for bar, (height, face, hatch) in enumerate(heights):
            if height is not None:
                x = place + 0.2 * (bar - 1.5)
                panel.bar(x, height, width=0.18, color=face, edgecolor=colour, hatch=hatch, linewidth=1.0)
                if bar and evidence.dry_run:
                    continue
                panel.annotate(
                    f"{height:.2f}", (x, 0.03), ha="center", va="bottom", fontsize=8, rotation=90,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.8},
                )  # fmt: skip
        if predicted is not None:
            panel.plot([place - 0.42, place + 0.42], [predicted] * 2, color="#222222", linewidth=1.5)
    panel.axhline(1.0, color="#777777", linewidth=0.9, linestyle="dotted")
    panel.set_xticks(range(len(facts.METHODS)), [facts.NAMES[method] for method in facts.METHODS])
    panel.set_ylim(bottom=0)
    panel.set_ylabel("Speed-up over the original, M = 1 (x)")
    panel.set_title(
        "Bars, left to right: paper (hatched), HF generation,\npyprune generation, pyprune step; black line: by bytes",
        fontsize=9,
    )
    add_grid(panel)


def _trade_off(panel: Any, evidence: Evidence, ratio: str) -> None:
    gpu = paper_gpu(evidence)
    for method in ROWS:
        row_ratio = None if method == facts.ORIGINAL else ratio
        colour, marker = style_of(method)
        for (engine, kind), dashes in LINES.items():
            timings = curve(evidence, method, row_ratio, engine, kind)
            if timings:
                x, y = (
                    [latency(timing) for timing in timings],
                    [timing.batch * timing.new_tokens / latency(timing) for timing in timings],
                )
                face = colour if kind == GENERATION and engine == "pyprune" else "none"
                panel.plot(
                    x, y, color=colour, marker=marker, linestyle=dashes, markerfacecolor=face, markersize=6,
                    linewidth=1.3,
                )  # fmt: skip
                if method == facts.ORIGINAL and (kind == STEP or engine == "hf"):
                    for timing, a, b in zip(timings, x, y, strict=True):
                        panel.annotate(
                            f"M={timing.batch}", (a, b), xytext=(6, -11), textcoords="offset points", fontsize=8
                        )
        paper = facts.speed(evidence.model, row_ratio, method, gpu)
        if paper is not None and paper.latency_s is not None and paper.tokens_per_s is not None:
            _paper_point(panel, paper.latency_s, paper.tokens_per_s, method)
    panel.set_xscale("log")
    panel.set_yscale("log")
    plain_ticks(panel.xaxis)
    plain_ticks(panel.yaxis)
    panel.set_xlabel(f"Latency of the batch (s), L = {facts.NEW_TOKENS}")
    panel.set_ylabel("Throughput (tokens/s)")
    panel.set_title(f"{ratio} removed", fontsize=10)
    panel.margins(0.12)
    add_grid(panel)


def saw_tooth(sweep: dict[str, Any]) -> bytes:
    """Rate against width of the sweep, a line of panels a number of rows; medians."""
    roles, ranges = ("gate/up", "down"), sweep["ranges"]
    figure = new_figure(13.0, 1.2 + 2.9 * len(sweep["rows"]))
    grid = figure.subplots(len(sweep["rows"]), len(roles), squeeze=False)
    for line, rows in zip(grid, sweep["rows"], strict=True):
        for panel, role in zip(line, roles, strict=True):
            for side, colour in zip(sweep["sides"], SIDE_COLOURS, strict=False):
                for place, (low, high) in enumerate(ranges):
                    points = sorted(
                        (point["width"], statistics.median(point["seconds"][side]))
                        for point in sweep["points"]
                        if (point["role"], point["rows"]) == (role, rows)
                        and low <= point["width"] <= high
                        and point["seconds"].get(side)
                    )
                    rates = [work(role, width, sweep["hidden"], rows, 2) / seconds / 1e9 for width, seconds in points]
                    panel.plot(
                        [width for width, _ in points], rates, color=colour, linewidth=1.0, marker=".", markersize=3,
                        label=side if not place else None,
                    )  # fmt: skip
            panel.set_title(f"{role}, {rows} row{'s' if rows > 1 else ''}", fontsize=10)
            panel.set_ylabel("GB/s" if rows <= MOST_BYTES_ROWS else "GFLOP/s")
            panel.set_ylim(bottom=0)
            add_grid(panel)
    for panel in grid[-1]:
        panel.set_xlabel("FFN width")
    handles, labels = grid[0][0].get_legend_handles_labels()
    legend_below(figure, handles, labels, 5)
    where = "a dry run on a CPU" if sweep.get("dry_run") else sweep["device"]
    figure.suptitle(f"One linear of hidden size {sweep['hidden']} in bf16 against its width, {where}", fontsize=11)
    if sweep.get("dry_run"):
        _watermark(figure)
    return png(figure)


def _paper_point(panel: Any, x: float, y: float, method: str) -> None:
    colour, _ = style_of(method)
    panel.plot(
        x, y, marker=PAPER_MARK, color=colour, markersize=13, markerfacecolor="white", markeredgewidth=1.4,
        linestyle="none", zorder=3,
    )  # fmt: skip


def _blend(colour: str, alpha: float) -> str:
    parts = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(255 + (part - 255) * alpha):02x}" for part in parts)


def _finished(figure: Any, evidence: Evidence, title: str, handles: list[Any]) -> bytes:
    legend_below(figure, handles, [handle.get_label() for handle in handles], 5, fontsize=8.5, handlelength=3)
    where = "dry run on a CPU" if evidence.dry_run else evidence.device
    figure.suptitle(f"{title}\nhere: {where}; stars: the paper's {paper_gpu(evidence)} at M = 1", fontsize=11)
    if evidence.dry_run:
        _watermark(figure)
    return png(figure)


def _handles(methods: tuple[str, ...], ways: bool = True, layouts: bool = False) -> list[Any]:
    """What a legend shows: a colour and marker for each row, a line for each way of timing, the paper's star."""
    from matplotlib.lines import Line2D

    shown = []
    for method in methods:
        colour, marker = style_of(method)
        shown.append(Line2D([], [], color=colour, marker=marker, linestyle="none", label=facts.NAMES[method]))
    if ways:
        for (engine, kind), dashes in LINES.items():
            face = "#222222" if (engine, kind) == ("pyprune", GENERATION) else "none"
            label = f"{ENGINES[engine]}, {'128 replayed steps' if kind == STEP else 'whole generations'}"
            shown.append(
                Line2D([], [], color="#222222", linestyle=dashes, marker="o", markerfacecolor=face, label=label)
            )
    if layouts:
        for label, face in (("packed", "none"), ("padded strides", "#222222")):
            shown.append(
                Line2D([], [], color="#222222", linestyle="none", marker="o", markerfacecolor=face, label=label)
            )
        label = "widths of multiples of 64"
        shown.append(Line2D([], [], color="#222222", alpha=FAINT, linestyle="none", marker="o", label=label))
    star = Line2D(
        [], [], color="#222222", linestyle="none", marker=PAPER_MARK, markersize=11, markerfacecolor="white",
        label="the paper",
    )  # fmt: skip
    return [*shown, star]


def _watermark(figure: Any) -> None:
    """Over every panel, whose axes lose their numbers: nothing can be read off as if it were measured."""
    for panel in figure.axes:
        panel.tick_params(labelleft=False, labelbottom=False)
        panel.text(
            0.5, 0.5, "DRY RUN\nnot a measurement", fontsize=22, color="#b00020", alpha=0.55, rotation=20, ha="center",
            va="center", transform=panel.transAxes, zorder=10,
        )  # fmt: skip
