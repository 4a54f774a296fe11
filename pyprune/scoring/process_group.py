"""The processes that share the work of scoring. Here: a single one. `pyprune.scoring.distributed` has more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


class WorkerLost(RuntimeError):
    """Another process that shares the work has died, failed or left, so the result cannot come."""


class ProcessGroup:
    """Processes that make the same calls, each of them doing its part. This one has no others."""

    rank, size = 0, 1

    def check(self) -> None:
        """Raise WorkerLost when another process has died, failed or left."""

    def require_same_call(self, subject: str) -> None:
        """Raise InputError when rank 0 works on something else than `subject` says."""

    def all_reduce(self, *tensors: Tensor) -> None:
        """Make each tensor the sum over all processes, in place."""

    def broadcast(self, *tensors: Tensor) -> None:
        """Make each tensor the one of rank 0, in place."""

    def send_to_rank_zero(self, entry: dict[str, Any]) -> None:
        """Hand a journal entry to rank 0."""

    def on_entry(self, callback: Callable[[dict[str, Any]], None]) -> None:
        """In rank 0: call `callback`, from a thread, with what the others send."""

    def fail(self, reason: str) -> None:
        """Let the others know that this process cannot go on."""


SINGLE_PROCESS = ProcessGroup()
