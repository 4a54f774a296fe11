"""How the work of scoring is cut: between processes, then into parts that fit in memory and, where finished parts are
kept, last seconds.

The work is a table of cells, one candidate on one sample. Samples are cut before candidates, which share beginnings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy

JOURNALED = {"cpu": 3e11, "cuda": 3e13}
"""Multiplications in a part of which the result is kept: some seconds on two cores, or on one GPU."""


@dataclass(frozen=True)
class Stretch:
    """Samples `start` .. `stop`-1 and the candidates, by their place in a list, that run on all of them."""

    start: int
    stop: int
    candidates: tuple[int, ...]


def share(todo: numpy.ndarray, costs: Sequence[int], rank: int, size: int) -> numpy.ndarray:
    """The cells of `todo`, bool `[S, candidates]`, that one of `size` processes works on: bool of the same shape.

    The cells, sample by sample, are one line that is cut into stretches of equal predicted cost (`costs`: of each
    candidate on one sample), so that a process has whole samples and at most two in part.
    """
    if size == 1:
        return todo
    weights = todo * numpy.asarray(costs, dtype=numpy.float64)
    ends = weights.cumsum().reshape(todo.shape)
    turns = numpy.floor((ends - weights / 2) / max(ends.max(initial=0), 1e-300) * size).astype(int)
    return todo & (turns.clip(0, size - 1) == rank)


def stretches(cells: numpy.ndarray) -> Iterator[Stretch]:
    """The cells, bool `[S, candidates]`, as stretches of neighbouring samples on which the same candidates run."""
    samples, start = len(cells), 0
    for stop in range(1, samples + 1):
        if stop == samples or (cells[stop] != cells[start]).any():
            candidates = tuple(numpy.flatnonzero(cells[start]).tolist())
            if candidates:
                yield Stretch(start, stop, candidates)
            start = stop


def cut(stretch: Stretch, samples: int, candidates: int) -> Iterator[Stretch]:
    """Parts of at most so many samples and so many candidates; all parts of the same samples follow each other."""
    for start in range(stretch.start, stretch.stop, samples):
        for first in range(0, len(stretch.candidates), candidates):
            group = stretch.candidates[first : first + candidates]
            yield Stretch(start, min(start + samples, stretch.stop), group)


def part_size(most: float, cost: float, stretch: Stretch, tokens: int, rows: int) -> tuple[int, int]:
    """How many samples and candidates of a stretch make a part of about `most` multiplications, or of `rows` rows of
    `tokens` tokens where that is more (narrower parts run less well); `cost`: of all its candidates on one sample."""
    samples, candidates = stretch.stop - stretch.start, len(stretch.candidates)
    if cost <= most:
        return min(samples, max(int(most / cost), _whole(rows, candidates * tokens))), candidates
    group = min(candidates, max(int(candidates * most / cost), _whole(rows, tokens)))
    return 1, _whole(candidates, _whole(candidates, group))


def _whole(count: int, size: int) -> int:
    """How many of that size are needed."""
    return -(-count // size)
