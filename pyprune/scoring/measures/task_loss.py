"""Task loss: the mean NLL in nats of given answers, such as the right endings of a benchmark's questions."""

from __future__ import annotations

from torch import Tensor

from pyprune.errors import InputError
from pyprune.scoring.losses import IGNORED
from pyprune.scoring.measures.interface import LossMeasure, Samples, require_number


class TaskLoss(LossMeasure):
    name = "task-loss"

    def __init__(self, samples: Samples) -> None:
        if samples.labels is None:
            raise InputError("labels: None given, but measure task-loss needs labels [samples, tokens], -100 for none")
        self.targets = samples.labels[:, 1:]
        self._positions = int((self.targets != IGNORED).sum())
        if self._positions == 0:
            raise InputError("labels: none is set after the first token; at least one that is not -100 is expected")
        asked = (self.targets != IGNORED).any(0)
        self.asked = None if bool(asked.all()) else asked

    def value(self, sums: Tensor) -> float:
        return require_number(self.name, float(sums.sum()) / self._positions)
