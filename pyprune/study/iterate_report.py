"""Iterative pruning as a table, and as a figure in the manner of the paper's Figure 5."""

from __future__ import annotations

from pyprune.retraining.iterated import Iterated, unit_text
from pyprune.study.figure import add_grid, new_figure, plain_ticks, png
from pyprune.study.score_axes import BASELINE


def cells(result: Iterated) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table: a line for each number of units removed."""
    beside = {name: curve for name, curve in (("one-shot", result.one_shot), ("greedy", result.greedy)) if curve}
    header = ["gone", "removed", "pruned", "retrained", *beside, "parameters"]
    whole = f"{result.baseline:.4g}"
    rows = [["0", "", *[whole] * (2 + len(beside)), f"{result.parameters:,}"]]
    for number, step in enumerate(result.rounds, start=1):
        values = (step.perplexity, step.retrained, *(curve[number - 1].perplexity for curve in beside.values()))
        rows.append(
            [str(number), unit_text(step.removed), *(f"{value:.4g}" for value in values), f"{step.parameters:,}"]
        )
    return header, rows


def figure(result: Iterated) -> bytes:
    """PNG after Figure 5: perplexity on the held-out text against the units removed, with and without training."""
    numbers = list(range(len(result.rounds) + 1))
    lines = (
        ("one-shot, not retrained", [step.perplexity for step in result.one_shot], "#999933", "s", (0, (1, 1.5))),
        ("greedy, not retrained", [step.perplexity for step in result.greedy], "#CC6677", "^", (0, (4, 2))),
        ("iterative, before each retraining", [step.perplexity for step in result.rounds], "#88CCEE", "o", (0, (4, 2))),
        (f"iterative, {result.steps} steps after each removal", [step.retrained for step in result.rounds], "#332288",
         "o", "solid"),
    )  # fmt: skip
    drawing = new_figure(8.0, 5.4)
    panel = drawing.subplots()
    for label, values, colour, marker, dashes in lines:
        if not values:  # a curve that was not asked for
            continue
        panel.plot(
            numbers, [result.baseline, *values], label=label, color=colour, marker=marker, linestyle=dashes,
            linewidth=1.6, markersize=6,
        )  # fmt: skip
    if result.one_shot_retrained is not None:
        steps = result.steps * len(result.rounds)
        panel.plot(
            numbers[-1], result.one_shot_retrained, label=f"one-shot, then {steps} steps", color="#117733", marker="*",
            markersize=14, linestyle="none",
        )  # fmt: skip
    panel.axhline(result.baseline, color=BASELINE, linewidth=1.1, linestyle=(0, (5, 2)))
    finite = [value for _, values, *_ in lines for value in values if value < float("inf")]
    if finite and max(finite) > 4 * result.baseline:
        panel.set_yscale("log")
        plain_ticks(panel.yaxis)
    panel.set_xticks(numbers)
    panel.set_xlabel(f"Units removed ({result.unit}); dashed line: nothing removed")
    panel.set_ylabel("Perplexity on the held-out text (lower is better)")
    panel.set_title(f"{result.model}: iterative pruning and retraining against pruning alone")
    add_grid(panel)
    panel.legend(fontsize=9)
    return png(drawing)
