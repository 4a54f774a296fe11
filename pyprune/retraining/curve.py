"""The curve of a training: the loss of each step, and of held-out text in between."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Point:
    """After `step` optimizer steps. tokens: seen so far, padding not counted; seconds: of all runs together; loss: of
    that step's batch, None before the first; held_out: mean negative log-likelihood on the held-out samples, None where
    it was not taken. Losses in nats a token.
    """

    step: int
    tokens: int
    seconds: float
    learning_rate: float | None = None
    loss: float | None = None
    held_out: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def csv_text(curve: Sequence[Point]) -> str:
    """The curve as CSV with a header; empty where a value is None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Point)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(point.to_dict() for point in curve)
    return text.getvalue()
