"""Which rows of a comparison fit into memory side by side, by the planner's figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pyprune.models.decoder import Decoder
from pyprune.runtime import memory
from pyprune.runtime.planner import plan_memory


@dataclass(frozen=True)
class Shortage:
    """Why a row was not run, in bytes. `planned`: the planner's total of weights, cache and workspace; `needed`: what
    of it was still to be allocated; `available`: what was left beside the rows before it."""

    planned_bytes: int
    needed_bytes: int
    available_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Room:
    """The memory for engines of `batch` sequences of `length` tokens, all of them there at the same time."""

    def __init__(self, device: Any, batch: int, length: int) -> None:
        self._device, self._batch, self._length = device, batch, length
        self._caches = 0  # of the engines admitted so far, which may not have been allocated yet

    def admit(self, decoder: Decoder, new_weights: int = 0, keeps_cache: bool = True) -> Shortage | None:
        """Count the engine of this decoder in, `new_weights` bytes of whose weights are not there yet; why not, where
        it does not fit. keeps_cache: whether its cache stays while others run."""
        shortage = self.shortage(decoder, new_weights)
        if shortage.needed_bytes > shortage.available_bytes:
            return shortage
        if keeps_cache:
            self._caches += plan_memory(decoder, self._batch, self._length, device=self._device.type).cache
        return None

    def shortage(self, decoder: Decoder, new_weights: int = 0) -> Shortage:
        """The figures for this decoder. Where the system does not say what is available, all of it is."""
        plan = plan_memory(decoder, self._batch, self._length, device=self._device.type)
        needed = new_weights + plan.cache + plan.workspace
        memory.give_back()
        free = memory.available(self._device)
        return Shortage(plan.total, needed, needed if free is None else max(0, free - self._caches))
