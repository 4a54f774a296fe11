"""Prefill chunks: a batch of prompts cut up so that prefill needs little memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """Tokens `start` .. `stop`-1 of the sequences `first` .. `last`-1."""

    first: int
    last: int
    start: int
    stop: int


def chunks(lengths: Sequence[int], max_tokens: int, together: bool = True) -> Iterator[Chunk]:
    """Chunks of up to `max_tokens` in all that cover prompts of `lengths`, in order.

    Up to `max_tokens` sequences run together, then the next ones. A prompt that has ended runs on as padding only where
    it stands between two that have not. together=False: one sequence after the other.
    """
    size = max_tokens if together else 1
    for low in range(0, len(lengths), size):
        high, start = min(low + size, len(lengths)), 0
        while unfinished := [b for b in range(low, high) if lengths[b] > start]:
            first, last = unfinished[0], unfinished[-1] + 1
            stop = min(start + max_tokens // (last - first), max(lengths[first:last]))
            yield Chunk(first, last, start, stop)
            start = stop
