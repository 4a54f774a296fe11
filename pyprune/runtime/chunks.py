"""A batch of prompts cut into pieces that run one after the other, so that prefill needs little memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """Tokens `start` .. `stop`-1 of the sequences `first` .. `last`-1."""

    first: int
    last: int
    start: int
    stop: int


def pieces(lengths: Sequence[int], most: int, together: bool = True) -> Iterator[Piece]:
    """Pieces of up to `most` tokens in all (at least one a sequence) that cover prompts of `lengths`, in order.

    A prompt that has ended runs on as padding only where it stands between two that have not. together=False: one
    sequence after the other.
    """
    groups = [(0, len(lengths))] if together else [(b, b + 1) for b in range(len(lengths))]
    for low, high in groups:
        start = 0
        while going := [b for b in range(low, high) if lengths[b] > start]:
            first, last = going[0], going[-1] + 1
            stop = min(start + max(1, most // (last - first)), max(lengths[first:last]))
            yield Piece(first, last, start, stop)
            start = stop
