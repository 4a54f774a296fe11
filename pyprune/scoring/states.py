"""States that outlive a pass: a search scores again and again models that begin alike."""

from __future__ import annotations

from torch import Tensor

from pyprune.scoring.removals import Removal


class StateStore:
    """Residual streams before a block, `[S, T, hidden]`, by the block and the places that they lack, within a limit of
    bytes. What does not fit is not kept: it is computed again.

    `stride`: states before every stride-th block are kept.
    """

    def __init__(self, limit: int, stride: int = 1) -> None:
        self._limit, self._stride, self._bytes = limit, stride, 0
        self._states: dict[tuple[int, Removal], Tensor] = {}

    def __len__(self) -> int:
        return len(self._states)

    def has(self, block: int, lacking: Removal) -> bool:
        return (block, lacking) in self._states

    def get(self, block: int, lacking: Removal) -> Tensor:
        return self._states[block, lacking]

    def offer(self, block: int, lacking: Removal, state: Tensor) -> None:
        """Keep a copy where there is room and none yet."""
        size = state.numel() * state.element_size()
        if block % self._stride or self.has(block, lacking) or self._bytes + size > self._limit:
            return
        self._states[block, lacking] = state.clone()
        self._bytes += size

    def keep_for(self, removed: Removal) -> None:
        """Forget what no candidate that lacks `removed`, and more, begins with."""
        for block, lacking in list(self._states):
            if not frozenset(place for place in removed if place < 2 * block) <= lacking:
                state = self._states.pop((block, lacking))
                self._bytes -= state.numel() * state.element_size()
