"""How a perplexity is taken from a text: its rows, windows and beginning-of-sequence tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pyprune.checks import is_whole
from pyprune.errors import InputError
from pyprune.scoring.calibration import BOS_RULES

FULL = "full"
"""A window as long as the model's context."""
JOINS = ("raw", "rows")
"""A text as it stands; or its rows, blank ones too, with a blank line between every two."""


@dataclass(frozen=True)
class PerplexityProtocol:
    """window: tokens in each window, a BOS token included, or "full". stride: how many tokens after one window the next
    begins; None: where the one before ends, and what is left at the end of the text is dropped. join: "raw" or "rows".
    bos: "none", "first" (one before all of the text, where the tokenizer has one) or "each" (every window begins with
    one).

    With a stride every token of the text counts once, in the first window that holds it, the last window being shorter.
    Raises InputError for a value that none of this describes.
    """

    window: int | Literal["full"] = 128
    stride: int | None = None
    join: str = "raw"
    bos: str = "first"

    def __post_init__(self) -> None:
        if self.window != FULL and (not is_whole(self.window) or int(self.window) < 2):
            raise InputError(f"window {self.window!r}: a whole number from 2, or {FULL}, is expected")
        if self.stride is not None and (not is_whole(self.stride) or int(self.stride) < 1):
            raise InputError(f"stride {self.stride!r}: a whole number from 1 is expected")
        for name, rule, accepted in (("join", self.join, JOINS), ("bos", self.bos, BOS_RULES)):
            if rule not in accepted:
                raise InputError(f"{name} {rule!r}: {', '.join(accepted)} are accepted")
        if self.window != FULL:
            self.text_length(int(self.window))

    def text_length(self, context: int) -> int:
        """Tokens of text in a window of a model with this context. InputError where window or stride do not fit."""
        window = context if self.window == FULL else int(self.window)
        if window > context:
            raise InputError(f"window {window}: at most the model's context, {context}, is accepted")
        length = window - (self.bos == "each")
        if self.stride is not None and self.stride > length:
            raise InputError(f"stride {self.stride}: at most the {length} tokens of text in a window are accepted")
        return length

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return {"window": self.window, "stride": self.stride, "join": self.join, "bos": self.bos}


PROTOCOLS = {"paper": PerplexityProtocol(window=128, stride=None, join="rows", bos="first")}
"""Protocols by name. "paper": what the code of Shortened LLaMA does for its Tables 2 to 6."""
