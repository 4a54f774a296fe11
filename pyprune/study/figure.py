"""Figures without a display: a canvas to draw on, and its PNG bytes."""

from __future__ import annotations

import io
from typing import Any

DOTS_PER_INCH = 110


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches."""
    # The Figure class with the Agg canvas: no display, and no global state of pyplot left behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any) -> bytes:
    """The figure as a PNG file."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=DOTS_PER_INCH)
    return target.getvalue()


def add_grid(panel: Any) -> None:
    """Faint lines behind what is drawn."""
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
