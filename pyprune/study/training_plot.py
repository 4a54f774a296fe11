"""The curve of a training as a figure."""

from __future__ import annotations

from collections.abc import Sequence

from pyprune.retraining.curve import Point
from pyprune.study.figure import add_grid, new_figure, png

TRAINING, HELD_OUT = "#9ab5d6", "#c44e52"


def training_curve(curve: Sequence[Point], title: str) -> bytes:
    """PNG of the loss of each step, and of the held-out text, over the tokens that were seen."""
    figure = new_figure(7.5, 4.6)
    panel = figure.subplots()
    steps = [point for point in curve if point.loss is not None]
    taken = [point for point in curve if point.held_out is not None]
    panel.plot([p.tokens for p in steps], [p.loss for p in steps], color=TRAINING, linewidth=1.2, label="batch")
    if taken:
        panel.plot(
            [p.tokens for p in taken], [p.held_out for p in taken], color=HELD_OUT, marker="o", markersize=4,
            linewidth=1.6, label="held-out text",
        )  # fmt: skip
    add_grid(panel)
    panel.set_xlabel("Tokens seen")
    panel.set_ylabel("Loss (nats a token)")
    panel.set_title(title)
    panel.legend(frameon=False)
    return png(figure)
