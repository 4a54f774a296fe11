"""What a candidate is measured by: one file a measure, behind the interface of `interface.py`."""

from __future__ import annotations

from collections.abc import Sequence

from pyprune.errors import InputError
from pyprune.scoring.measures.cosine import Cosine
from pyprune.scoring.measures.finercut import FinerCut
from pyprune.scoring.measures.interface import (
    ComparingMeasure,
    LogitsMeasure,
    LossMeasure,
    Measure,
    Samples,
    StateMeasure,
)
from pyprune.scoring.measures.kl import KLDivergence
from pyprune.scoring.measures.perplexity import Perplexity
from pyprune.scoring.measures.task_loss import TaskLoss
from pyprune.scoring.measures.top1 import Top1

__all__ = [
    "MEASURES",
    "ComparingMeasure",
    "LogitsMeasure",
    "LossMeasure",
    "Measure",
    "Samples",
    "StateMeasure",
    "chosen_measures",
    "measure_names",
]

MEASURES = {kind.name: kind for kind in (Perplexity, KLDivergence, Cosine, Top1, TaskLoss, FinerCut)}
"""By name; the paper's own first."""


def measure_names(measure: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names of measures that a `measure=` argument means; InputError for one that there is not."""
    if measure is None:
        return ("ppl",)
    names = (measure,) if isinstance(measure, str) else tuple(measure)
    for name in names:
        if name not in MEASURES:
            raise InputError(f"measure: {name!r} given; {', '.join(MEASURES)} are accepted")
    if not names or len(set(names)) < len(names):
        raise InputError(f"measure: {list(names)} given; one or several different ones are expected")
    return names


def chosen_measures(names: Sequence[str], samples: Samples) -> tuple[Measure, ...]:
    """The measures of these names on samples; InputError where one needs labels that there are not."""
    return tuple(MEASURES[name](samples) for name in names)
