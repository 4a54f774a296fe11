"""How rows of a comparison are named in sentences and drawn in figures, by their method."""

from __future__ import annotations

from pyprune.pruning.method import Style
from pyprune.pruning.width import METHODS

ORIGINAL, DEPTH = "original", "depth"
_PADDED = " padded"
_STYLES = {ORIGINAL: Style("#555555", "o"), DEPTH: Style("#0072B2", "s")}
_UNKNOWN = Style("#000000", "x")
"""Of a method that this installation lacks: results of another one are drawn all the same."""


def padded(method: str) -> str:
    """The method of the row whose FFN width is padded."""
    return method + _PADDED


def label_of(method: str) -> str:
    """The width method's name in sentences; the method itself where it is not installed."""
    return METHODS[method].label if method in METHODS else method


def style_of(method: str) -> Style:
    """Colour and marker. Those of the methods are of Okabe and Ito's palette, which colour-blind readers tell apart,
    and, padded, of Tol's."""
    if method in _STYLES:
        return _STYLES[method]
    width = METHODS.get(method.removesuffix(_PADDED))
    if width is None:
        return _UNKNOWN
    return width.padded_style if method.endswith(_PADDED) else width.style
