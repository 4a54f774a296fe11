"""What a criterion measured, before it becomes `Scores`."""

from __future__ import annotations

from dataclasses import dataclass

Unit = tuple[str, int]
"""A kind ("block", "mha", "ffn") and a block's index in the original model."""


@dataclass(frozen=True)
class Measurement:
    """One value a unit, the lowest for the most removable; `baseline`: the same measure of the unpruned model."""

    values: dict[Unit, float]
    baseline: float | None = None
