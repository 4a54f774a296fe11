"""The processes that share the work of scoring. Here: one alone. `pyprune.scoring.distributed` has more."""

from __future__ import annotations

from torch import Tensor


class Team:
    """Processes that make the same calls, each of them doing its part. This one has no others."""

    rank, size = 0, 1

    def check(self) -> None:
        """Raise WorkerLost when another process has died or failed."""

    def add_up(self, *tensors: Tensor) -> None:
        """Make each tensor the sum over all processes, in place."""

    def as_first(self, *tensors: Tensor) -> None:
        """Make each tensor the one of rank 0, in place."""


ALONE = Team()
