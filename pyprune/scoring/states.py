"""States that outlive a pass: a search scores again and again models that begin alike."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyprune.scoring.removals import Removal, before


class StateStore:
    """Residual streams before a block, `[S, T, hidden]`, by the block and the places that they lack, within a limit of
    bytes. What does not fit is not kept: it is computed again.

    The states of the trunk, what all candidates begin with, have `reserve` bytes of the limit to themselves and are
    kept before every `trunk_stride`-th block; those of single candidates before every `stride`-th. Nothing is kept
    after block `last`.
    """

    def __init__(
        self, limit: int, stride: int = 1, *, reserve: int = 0, trunk_stride: int = 1, last: int | None = None
    ) -> None:
        self._limit, self._reserve, self._last = limit, reserve, last
        self._stride, self._trunk_stride = stride, trunk_stride
        self._removed: Removal = frozenset()
        self._states: dict[tuple[int, Removal], Tensor] = {}
        self._trunk = self._apart = 0  # bytes

    @classmethod
    def within(cls, limit: int, state: int, blocks: int, leaving: Sequence[int], apart: bool = True) -> StateStore:
        """The store for candidates that leave the trunk in the blocks `leaving`, with the closest strides that fit.

        limit: bytes; state: bytes of one state; blocks: how many the decoder has; apart: whether states of single
        candidates will be wanted again.
        """
        last = max(leaving, default=0)
        trunk_stride = next((n for n in range(1, blocks) if last // n * state <= limit), blocks)
        reserve = last // trunk_stride * state

        def needed(stride: int) -> int:
            return reserve + sum(last // stride - block // stride for block in leaving) * state

        strides = range(1, blocks) if apart else ()
        stride = next((n for n in strides if needed(n) <= limit), blocks)
        return cls(limit, stride, reserve=reserve, trunk_stride=trunk_stride, last=last)

    def __len__(self) -> int:
        return len(self._states)

    @property
    def bytes(self) -> int:
        return self._trunk + self._apart

    def has(self, block: int, lacking: Removal) -> bool:
        return (block, lacking) in self._states

    def get(self, block: int, lacking: Removal) -> Tensor:
        return self._states[block, lacking]

    def offer(self, block: int, lacking: Removal, state: Tensor) -> None:
        """Keep a copy where there is room and none yet."""
        size = state.numel() * state.element_size()
        trunk = self._is_trunk(block, lacking)
        if self.has(block, lacking) or block % (self._trunk_stride if trunk else self._stride):
            return
        if self._last is not None and block > self._last:
            return
        if self.bytes + size + (0 if trunk else max(0, self._reserve - self._trunk)) > self._limit:
            return
        self._states[block, lacking] = state.clone()
        if trunk:
            self._trunk += size
        else:
            self._apart += size

    def keep_for(self, removed: Removal) -> None:
        """Forget what no candidate that lacks `removed`, and more, begins with. What lacks just that is the trunk."""
        self._removed = removed
        self._states = {
            (block, lacking): state
            for (block, lacking), state in self._states.items()
            if before(removed, block) <= lacking
        }
        sizes = {key: state.numel() * state.element_size() for key, state in self._states.items()}
        self._trunk = sum(size for key, size in sizes.items() if self._is_trunk(*key))
        self._apart = sum(sizes.values()) - self._trunk

    def _is_trunk(self, block: int, lacking: Removal) -> bool:
        return lacking == before(self._removed, block)
