"""The losses of any candidates on fixed samples, within memory, journaled, and shared by several processes.

The work is a table of cells, one candidate on one sample. One call of `Evaluator.losses`

1. fills in the cells that the journal has,
2. takes this process's share of the others (`cells_of_rank`),
3. divides it into parts that fit in memory and, with a journal, take seconds (`_parts`),
4. runs each part: a schedule, then one layer-major pass that starts from stored states (`_run`),
5. adds up what all processes have computed.

How the work is divided never changes a loss: each is a sum over one sample, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy
import torch
from torch import Tensor

from pyprune.models.decoder import Decoder
from pyprune.progress import Progress
from pyprune.scoring import cells
from pyprune.scoring.cells import CellBlock, cell_blocks, cells_of_rank, journaled_size, split_block
from pyprune.scoring.cost import Costs, Passes, naive_passes
from pyprune.scoring.footprint import PassSize
from pyprune.scoring.layer_major import candidate_losses
from pyprune.scoring.losses import Losses, exp_mean, predicted_positions, targets_of
from pyprune.scoring.memory_budget import MemoryBudget
from pyprune.scoring.process_group import SINGLE_PROCESS, ProcessGroup
from pyprune.scoring.progress import WorkProgress
from pyprune.scoring.removals import NO_REMOVAL, Removal, present_sublayers
from pyprune.scoring.schedule import count_slots, make_schedule
from pyprune.scoring.state_store import StateStore


class LossJournal(Protocol):
    """Where the losses of finished parts are kept: `pyprune.scoring.journal.Journal`, or a rank's way to it."""

    def fill(self, removals: Sequence[Removal], losses: Tensor, pending: Tensor) -> None:
        """Put the journaled losses into `losses [candidates, S]`, and False into `pending` there."""

    def add(self, removals: Sequence[Removal], first_sample: int, losses: Tensor) -> None:
        """Keep `losses [candidates, N]` of the samples from `first_sample` on."""


class Evaluator:
    """The losses of candidates, `decoder` without some sublayers, on checked `input_ids [S, T]`.

    mask: bool `[S, T]` or None. targets: int64 `[S, T-1]`, what each position predicts, IGNORED where its loss does not
    count; the next token when None. memory: bytes that may be taken beyond the model; what is free when None. journal:
    where finished parts are kept and looked up. group: the processes that share the work; all of them make the same
    calls and get the same results. search: the calls are rounds of a search, so states are kept between them in what
    memory leaves.

    `passes`: what all processes have computed so far. `naive`: what one forward pass for every candidate would have
    been.
    """

    def __init__(
        self,
        decoder: Decoder,
        input_ids: Tensor,
        mask: Tensor | None,
        *,
        targets: Tensor | None = None,
        memory: int | None = None,
        journal: LossJournal | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
        search: bool = False,
    ) -> None:
        self.passes, self.naive = Passes(), Passes()
        self._decoder, self._ids, self._mask = decoder, input_ids, mask
        self._targets = targets_of(input_ids, mask) if targets is None else targets
        self._samples, self._tokens = input_ids.shape
        self._journal, self._group, self._search = journal, group, search
        self._budget = MemoryBudget(decoder, self._tokens, mask is not None, memory)
        self._present, self._costs = present_sublayers(decoder), Costs.of(decoder, self._tokens)
        # A search keeps its stores, so its later rounds divide the samples as the first one did.
        self._stores: dict[tuple[int, int], StateStore] = {}
        self._part_samples: int | None = None
        self._removed = NO_REMOVAL

    def set_removed(self, removed: Removal) -> None:
        """All candidates lack these sublayers from now on."""
        self._removed = removed
        for store in self._stores.values():
            store.set_removed(removed)

    def perplexities(self, removals: Sequence[Removal], progress: Progress | None = None) -> list[float]:
        """exp(mean NLL) of the decoder without each of these removals."""
        losses = self.losses(removals, progress)
        return [exp_mean(total, losses.positions) for total in losses.totals]

    def losses(self, removals: Sequence[Removal], progress: Progress | None = None) -> Losses:
        """The loss of each candidate on each sample. progress: called with (steps done, steps in all) of this call."""
        journaled = torch.zeros(len(removals), self._samples, dtype=torch.float64)
        pending = torch.ones(len(removals), self._samples, dtype=torch.bool)
        if self._journal is not None:
            self._journal.fill(removals, journaled, pending)
            self._group.broadcast(journaled, pending)
        costs = numpy.asarray(self._costs.after_shared_prefix(removals), dtype=numpy.float64)
        pending_cells = pending.T.numpy()
        local_cells = cells_of_rank(pending_cells, costs, self._group.rank, self._group.size)
        journaled_work = float((~pending_cells * costs).sum()) / self._group.size
        work = WorkProgress(progress, journaled_work, journaled_work + float((local_cells * costs).sum()))

        computed, sample_passes = torch.zeros_like(journaled), Passes()
        for part in self._parts(local_cells, removals, costs):
            sample_passes += self._run(part, removals, costs, computed, work)

        all_passes = torch.tensor([sample_passes.blocks, sample_passes.heads], dtype=torch.float64)
        self._group.all_reduce(computed, all_passes)
        self.passes += Passes(*(all_passes / self._samples).tolist())
        self.naive += naive_passes(self._decoder, removals)
        work.finish()
        return Losses(journaled + computed, predicted_positions(self._targets))

    def _parts(self, local_cells: numpy.ndarray, removals: Sequence[Removal], costs: numpy.ndarray) -> list[_Part]:
        """The cells, bool `[S, candidates]`, as parts that fit in memory. Parts of the same samples share a store."""
        parts: list[_Part] = []
        stores: dict[tuple[int, int], StateStore | None] = {}
        local_samples = int(local_cells.any(1).sum())
        for block in cell_blocks(local_cells):
            candidates = [removals[i] for i in block.candidates]
            size = self._fit_pass(block.samples, candidates)
            part_samples, part_candidates = self._part_size(block, size, float(costs[list(block.candidates)].sum()))
            for part in split_block(block, part_samples, part_candidates):
                samples = part.start, part.stop
                if samples not in stores:
                    later_parts = part_candidates < len(candidates)
                    limit = self._budget.left_for_states(size) * part.samples // local_samples
                    stores[samples] = self._stores.get(samples) or self._store(part, candidates, limit, later_parts)
                parts.append(_Part(part, size.rows, stores[samples]))
        if self._search:
            self._stores = {samples: store for samples, store in stores.items() if store is not None}
        return parts

    def _fit_pass(self, samples: int, candidates: Sequence[Removal]) -> PassSize:
        """The largest pass over these candidates that fits in memory, of no more samples than earlier rounds ran."""
        samples = min(samples, self._part_samples or samples)
        return self._budget.fit_pass(samples, len(candidates), count_slots(self._present, candidates), self._search)

    def _part_size(self, block: CellBlock, size: PassSize, cost: float) -> tuple[int, int]:
        """How many samples and candidates the parts of a block have; cost: of all its candidates on one sample."""
        samples, candidates = size.samples, size.candidates
        # Streamed blocks are read once for each part, so a journal does not make their parts smaller.
        if self._journal is not None and not self._decoder.streamed:
            limits = cells.JOURNALED_MULTIPLICATIONS
            limit = limits.get(self._decoder.device.type, limits["cuda"]) / self._tokens
            short = journaled_size(limit, cost, block, self._tokens, size.rows)
            samples, candidates = min(samples, short[0]), min(candidates, short[1])
        if self._search:
            self._part_samples = samples = min(samples, self._part_samples or samples)
        return samples, candidates

    def _store(
        self, part: CellBlock, candidates: Sequence[Removal], limit: int, later_parts: bool
    ) -> StateStore | None:
        """The store for the states of these samples, None where neither later rounds nor later parts want them."""
        if not (self._search or later_parts):
            return None
        removed = self._removed if self._search else frozenset.intersection(*candidates)
        first_removed = [min(removal - removed) // 2 for removal in candidates if removal - removed]
        state_bytes = self._budget.state_bytes * part.samples
        store = StateStore.within(limit, state_bytes, len(self._decoder.blocks), first_removed, self._search)
        store.set_removed(removed)
        return store

    def _run(
        self, part: _Part, removals: Sequence[Removal], costs: numpy.ndarray, computed: Tensor, work: WorkProgress
    ) -> Passes:
        """Put the losses of a part into `computed [candidates, S]` and the journal; returns its passes, summed over its
        samples."""
        self._group.check()
        samples, indices = slice(part.cells.start, part.cells.stop), list(part.cells.candidates)
        candidates = [removals[i] for i in indices]
        is_stored = None if part.store is None else part.store.has
        schedule = make_schedule(len(self._decoder.blocks), self._present, candidates, is_stored)
        scale = float(costs[indices].sum()) / self._costs.of_schedule(schedule)

        def advance(sequences: int, sublayer: int | None) -> None:
            self._group.check()
            work.advance(scale * sequences * self._costs.at(sublayer))

        losses = candidate_losses(
            self._decoder,
            self._ids[samples],
            None if self._mask is None else self._mask[samples],
            schedule,
            rows=part.rows,
            store=part.store,
            advance=advance,
            targets=self._targets[samples],
        )
        computed[indices, samples] = losses.by_sample
        if self._journal is not None:
            self._journal.add(candidates, part.cells.start, losses.by_sample)
        return Passes(part.cells.samples * schedule.sublayer_passes / 2, part.cells.samples * schedule.slots)


@dataclass(frozen=True)
class _Part:
    """Cells that are computed together, the rows that go through a block at once, and the store of their states."""

    cells: CellBlock
    rows: int
    store: StateStore | None
