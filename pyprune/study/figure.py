"""Figures without a display: a canvas to draw on, and its PNG bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from html import escape
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


def legend_below(figure: Any, handles: Iterable[Any], labels: Iterable[str], columns: int = 4, **look: Any) -> None:
    """One legend below the panels, in as many columns as the figure is wide enough for, at most `columns`; inside a
    panel it would cover some of what is drawn."""
    listed = list(handles), list(labels)
    look = {"fontsize": 9, **look}
    for count in range(columns, 0, -1):
        legend = figure.legend(*listed, loc="outside lower center", ncols=count, **look)
        if count == 1 or legend.get_window_extent(figure.canvas.get_renderer()).width <= figure.bbox.width:
            return
        legend.remove()


def add_grid(panel: Any) -> None:
    """Faint lines behind what is drawn."""
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)


def plain_ticks(axis: Any) -> None:
    """Plain numbers on a logarithmic axis: 1, 2 and 5 times the powers of ten, the powers alone where there are many,
    evenly spaced numbers where there are few."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    class Plain(LogLocator):
        def tick_values(self, vmin: float, vmax: float) -> Any:
            if vmax < 6 * vmin:
                return MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(vmin, vmax)
            self.set_params(subs=(1.0, 2.0, 5.0) if vmax < 1000 * vmin else (1.0,))
            return super().tick_values(vmin, vmax)

    axis.set_major_locator(Plain())
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


PAGE_COLOURS = {
    "#000000": "var(--text)", "#ffffff": "var(--ground)", "#dddddd": "var(--line)", "#cccccc": "var(--line)",
    "#555555": "var(--muted)", "#999999": "var(--muted)", "#0072b2": "var(--blue)", "#332288": "var(--indigo)",
    "#882255": "var(--wine)", "#117733": "var(--forest)",
}  # fmt: skip
"""What stands for ink, ground, faint lines and dark colours in figures, as the pages' style sheet calls it, which has
them for light and dark."""


def inline_svg(figure: Any, description: str) -> str:
    """The figure as an SVG element for a page (`study.page`), in whose colours and font it is drawn. The same figure
    gives the same text."""
    import matplotlib

    target = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "pyprune", "svg.fonttype": "none"}):
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = target.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<svg [^>]*?viewBox=(\"[^\"]+\")[^>]*>", r"<svg viewBox=\1>", text, count=1, flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", text)
    for colour, name in PAGE_COLOURS.items():
        text = text.replace(colour, name)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1).strip()
