"""How rows of a comparison are named in sentences and drawn in figures, by their method."""

from __future__ import annotations

from collections.abc import Iterable

from pyprune.pruning.method import Style
from pyprune.pruning.width import METHODS

ORIGINAL, DEPTH, CHECKPOINT = "original", "depth", "checkpoint"
_PADDED = " padded"
_STYLES = {ORIGINAL: Style("#555555", "o"), DEPTH: Style("#0072B2", "s"), CHECKPOINT: Style("#CC3311", "*")}
_MARKERS = {DEPTH: "sD^v<>h", CHECKPOINT: "*XPpHd8"}
_UNKNOWN = Style("#000000", "x")
"""Of a method that this installation lacks: results of another one are drawn all the same."""


def padded(method: str) -> str:
    """The method of the row whose FFN width is padded."""
    return method + _PADDED


def unpadded(method: str) -> str:
    """The method of the row as it comes."""
    return method.removesuffix(_PADDED)


def label_of(method: str) -> str:
    """The width method's name in sentences; the method itself where it is not installed."""
    return METHODS[method].label if method in METHODS else method


def is_checkpoint(method: str) -> bool:
    """Whether a row of this method is a checkpoint that was given."""
    return method.startswith(f"{CHECKPOINT} ")


def shown_method(method: str) -> str:
    """The method in legends: of a checkpoint its name."""
    return method.removeprefix(f"{CHECKPOINT} ")


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """Colour and marker of each method; those of several depth rows or checkpoints differ in their markers."""
    chosen: dict[str, Style] = {}
    for method in dict.fromkeys(methods):
        kind = next((kind for kind in _MARKERS if method.startswith(f"{kind} ")), None)
        if kind is None:
            chosen[method] = style_of(method)
        else:
            markers = _MARKERS[kind]
            place = sum(other.startswith(f"{kind} ") for other in chosen)
            chosen[method] = Style(_STYLES[kind].colour, markers[place % len(markers)])
    return chosen


def style_of(method: str) -> Style:
    """Colour and marker. Those of the methods are of Okabe and Ito's palette, which colour-blind readers tell apart,
    and, padded, of Tol's."""
    if method in _STYLES:
        return _STYLES[method]
    width = METHODS.get(method.removesuffix(_PADDED))
    if width is None:
        return _UNKNOWN
    return width.padded_style if method.endswith(_PADDED) else width.style
