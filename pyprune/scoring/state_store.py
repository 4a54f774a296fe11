"""States that outlive a pass: the candidates of a search share prefixes with those of its earlier rounds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyprune.scoring.edits import NO_EDITS, Edits, edits_before


class StateStore:
    """Residual streams `[S, T, hidden]` before a block, by the block and their edits so far, within `limit` bytes. What
    does not fit is not kept: it is computed again.

    States of the shared prefix (all candidates begin with it) are kept before every `prefix_stride`-th block and have
    `prefix_reserve` bytes of the limit to themselves. States of single candidates are kept before every
    `candidate_stride`-th block. Nothing is kept after block `last_block`.
    """

    def __init__(
        self,
        limit: int,
        candidate_stride: int = 1,
        *,
        prefix_reserve: int = 0,
        prefix_stride: int = 1,
        last_block: int | None = None,
    ) -> None:
        self._limit, self._prefix_reserve, self._last_block = limit, prefix_reserve, last_block
        self._candidate_stride, self._prefix_stride = candidate_stride, prefix_stride
        self._removed: Edits = NO_EDITS
        self._states: dict[tuple[int, Edits], Tensor] = {}
        self._prefix_bytes = self._candidate_bytes = 0

    @classmethod
    def within(
        cls, limit: int, state_bytes: int, blocks: int, first_removed: Sequence[int], candidates: bool = True
    ) -> StateStore:
        """The store with the closest strides that fit in `limit` bytes.

        state_bytes: of one state; blocks: how many the decoder has; first_removed: the block in which each candidate
        leaves the shared prefix; candidates: whether states of single candidates are kept too.
        """
        last_block = max(first_removed, default=0)
        prefix_stride = next((n for n in range(1, blocks) if last_block // n * state_bytes <= limit), blocks)
        prefix_reserve = last_block // prefix_stride * state_bytes

        def needed(stride: int) -> int:
            states = sum(last_block // stride - block // stride for block in first_removed)
            return prefix_reserve + states * state_bytes

        strides = range(1, blocks) if candidates else ()
        candidate_stride = next((n for n in strides if needed(n) <= limit), blocks)
        return cls(
            limit,
            candidate_stride,
            prefix_reserve=prefix_reserve,
            prefix_stride=prefix_stride,
            last_block=last_block,
        )

    def __len__(self) -> int:
        return len(self._states)

    @property
    def bytes(self) -> int:
        """Bytes of all states that are kept."""
        return self._prefix_bytes + self._candidate_bytes

    def has(self, block: int, edits: Edits) -> bool:
        """Whether the state before `block` with these edits is kept."""
        return (block, edits) in self._states

    def get(self, block: int, edits: Edits) -> Tensor:
        """The state before `block` with these edits."""
        return self._states[block, edits]

    def offer(self, block: int, edits: Edits, state: Tensor) -> None:
        """Keep a copy of a state if it is due, fits, and is not kept yet."""
        size = state.numel() * state.element_size()
        in_prefix = self._in_shared_prefix(block, edits)
        if self.has(block, edits) or block % (self._prefix_stride if in_prefix else self._candidate_stride):
            return
        if self._last_block is not None and block > self._last_block:
            return
        reserved = 0 if in_prefix else max(0, self._prefix_reserve - self._prefix_bytes)
        if self.bytes + size + reserved > self._limit:
            return
        self._states[block, edits] = state.clone()
        if in_prefix:
            self._prefix_bytes += size
        else:
            self._candidate_bytes += size

    def set_removed(self, removed: Edits) -> None:
        """All candidates lack `removed` from now on, which makes the model without it their shared prefix. States that
        none of them can start from are forgotten."""
        self._removed = removed
        self._states = {
            (block, edits): state
            for (block, edits), state in self._states.items()
            if edits_before(removed, block) <= edits
        }
        sizes = {key: state.numel() * state.element_size() for key, state in self._states.items()}
        self._prefix_bytes = sum(size for key, size in sizes.items() if self._in_shared_prefix(*key))
        self._candidate_bytes = sum(sizes.values()) - self._prefix_bytes

    def _in_shared_prefix(self, block: int, edits: Edits) -> bool:
        return edits == edits_before(self._removed, block)
