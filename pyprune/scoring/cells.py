"""How scoring work is divided: between processes, then into blocks of cells that fit in memory and, with a journal,
take seconds.

A cell is one candidate on one sample. Samples are divided before candidates, because candidates share prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy

JOURNALED_MULTIPLICATIONS = {"cpu": 3e11, "cuda": 3e13}
"""Multiplications in a block of cells whose losses are journaled: some seconds on two cores, or on one GPU."""


@dataclass(frozen=True)
class CellBlock:
    """Samples `start` .. `stop`-1, and the candidates (positions in a list) that run on all of them."""

    start: int
    stop: int
    candidates: tuple[int, ...]

    @property
    def samples(self) -> int:
        """How many samples."""
        return self.stop - self.start


def cells_of_rank(pending: numpy.ndarray, costs: Sequence[int] | numpy.ndarray, rank: int, size: int) -> numpy.ndarray:
    """The cells of `pending`, bool `[S, candidates]`, that process `rank` of `size` works on: bool of the same shape.

    The cells, sample by sample, are one line. It is cut where the predicted cost is equal (`costs`: of each candidate
    on one sample), so that a process has whole samples and at most two in part.
    """
    if size == 1:
        return pending
    cell_costs = pending * numpy.asarray(costs, dtype=numpy.float64)
    ends = cell_costs.cumsum().reshape(pending.shape)
    total = max(ends.max(initial=0), 1e-300)
    ranks = numpy.floor((ends - cell_costs / 2) / total * size).astype(int)
    return pending & (ranks.clip(0, size - 1) == rank)


def cell_blocks(cells: numpy.ndarray) -> Iterator[CellBlock]:
    """The cells, bool `[S, candidates]`, as blocks of neighbouring samples on which the same candidates run."""
    samples, start = len(cells), 0
    for stop in range(1, samples + 1):
        if stop == samples or (cells[stop] != cells[start]).any():
            candidates = tuple(numpy.flatnonzero(cells[start]).tolist())
            if candidates:
                yield CellBlock(start, stop, candidates)
            start = stop


def split_block(block: CellBlock, samples: int, candidates: int) -> Iterator[CellBlock]:
    """Blocks of at most so many samples and candidates; all blocks of the same samples follow each other."""
    for start in range(block.start, block.stop, samples):
        for first in range(0, len(block.candidates), candidates):
            yield CellBlock(start, min(start + samples, block.stop), block.candidates[first : first + candidates])


def journaled_size(limit: float, cost: float, block: CellBlock, tokens: int, rows: int) -> tuple[int, int]:
    """How many samples and candidates of a block make about `limit` multiplications, or `rows` rows of `tokens` tokens
    where that is more (narrower passes run less well). cost: of all its candidates on one sample."""
    candidates = len(block.candidates)
    if cost <= limit:
        return min(block.samples, max(int(limit / cost), _ceil_div(rows, candidates * tokens))), candidates
    together = min(candidates, max(int(candidates * limit / cost), _ceil_div(rows, tokens)))
    return 1, _ceil_div(candidates, _ceil_div(candidates, together))


def _ceil_div(count: int, size: int) -> int:
    return -(-count // size)
