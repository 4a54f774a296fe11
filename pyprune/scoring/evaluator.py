"""What measures sum up for any candidates on fixed samples, within memory, journaled, and shared by several processes.

The work is a table of cells, one candidate on one sample. One call of `Evaluator.sums`

1. fills in the cells that the journal has,
2. takes this process's share of the others (`cells_of_rank`),
3. divides it into parts that fit in memory and, with a journal, take seconds (`_parts`),
4. runs each part: a schedule, then one layer-major pass that starts from stored states (`_run`),
5. adds up what all processes have computed.

How the work is divided never changes a cell: each is a sum over one sample, in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy
import torch
from torch import Tensor

from pyprune.models.load_any import AnyDecoder
from pyprune.progress import Progress
from pyprune.scoring import cells
from pyprune.scoring.as_layered import as_layered
from pyprune.scoring.cells import CellBlock, cell_blocks, cells_of_rank, journaled_size, split_block
from pyprune.scoring.cost import Costs, Passes, naive_passes
from pyprune.scoring.edits import NO_EDITS, Edits, effective, first_sublayer, sublayer_of
from pyprune.scoring.footprint import PassSize, measuring_bytes
from pyprune.scoring.layer_major import candidate_sums
from pyprune.scoring.layered_model import LayeredModel
from pyprune.scoring.measures import ComparingMeasure, Measure, Samples
from pyprune.scoring.measures.perplexity import Perplexity
from pyprune.scoring.memory_budget import MemoryBudget
from pyprune.scoring.process_group import SINGLE_PROCESS, ProcessGroup
from pyprune.scoring.progress import WorkProgress
from pyprune.scoring.replacements import Replacement
from pyprune.scoring.schedule import count_slots, make_schedule
from pyprune.scoring.state_store import StateStore


class SumsJournal(Protocol):
    """Where the sums of finished parts are kept: `pyprune.scoring.journal.Journal`, or a rank's way to it."""

    def fill(self, candidates: Sequence[Edits], sums: Tensor, pending: Tensor) -> None:
        """Put the journaled sums into `sums [measures, candidates, S]`, and False into `pending [candidates, S]`."""

    def add(self, candidates: Sequence[Edits], first_sample: int, sums: Tensor) -> None:
        """Keep `sums [measures, candidates, N]` of the samples from `first_sample` on."""


class Evaluator:
    """What candidates, each a model with some edits, measure on checked `input_ids [S, T]`.

    mask: bool `[S, T]` or None. measures: of these samples; perplexity when None. replacements: what stands in
    sublayers' places, by the edit. memory: bytes that may be taken beyond the model; what is free when None. journal:
    where finished parts are kept and looked up. group: the processes that share the work; all of them make the same
    calls and get the same results. search: the calls are rounds of a search, so states are kept between them in what
    memory leaves.

    `passes`: what all processes have computed so far. `naive`: what one forward pass for every candidate would have
    been.
    """

    def __init__(
        self,
        model: AnyDecoder | LayeredModel,
        input_ids: Tensor,
        mask: Tensor | None,
        *,
        measures: Sequence[Measure] | None = None,
        replacements: Mapping[int, Replacement] | None = None,
        memory: int | None = None,
        journal: SumsJournal | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
        search: bool = False,
    ) -> None:
        self.passes, self.naive = Passes(), Passes()
        self._model, self._ids, self._mask = as_layered(model), input_ids, mask
        self._samples, self._tokens = input_ids.shape
        self._measures = tuple(measures or (Perplexity(Samples(input_ids, mask)),))
        self._compares = any(isinstance(measure, ComparingMeasure) for measure in self._measures)
        self._replacements = replacements or {}
        self._journal, self._group, self._search = journal, group, search
        held = max((replacement.held_bytes() for replacement in self._replacements.values()), default=0)
        extra = measuring_bytes(self._model, map(type, self._measures), held)
        self._budget = MemoryBudget(self._model, self._tokens, mask is not None, memory, extra)
        self._present = self._model.present
        self._costs = costs_with(self._model, self._tokens, self._replacements)
        # A search keeps its stores, so its later rounds divide the samples as the first one did.
        self._stores: dict[tuple[int, int], StateStore] = {}
        self._part_samples: int | None = None
        self._removed = NO_EDITS

    def set_removed(self, removed: Edits) -> None:
        """All candidates lack these sublayers from now on."""
        self._removed = removed
        for store in self._stores.values():
            store.set_removed(effective(removed, self._present))

    def perplexities(self, candidates: Sequence[Edits], progress: Progress | None = None) -> list[float]:
        """exp(mean NLL) of each candidate, where perplexity is what is measured."""
        return self.values(candidates, progress)[0]

    def values(self, candidates: Sequence[Edits], progress: Progress | None = None) -> list[list[float]]:
        """Each measure of each candidate. progress: called with (steps done, steps in all) of this call.

        ArithmeticError that names the first candidate whose measure is not a number.
        """
        sums = self.sums(candidates, progress)

        def value(measure: Measure, edits: Edits, by_sample: Tensor) -> float:
            try:
                return measure.value(by_sample)
            except ArithmeticError as error:
                raise ArithmeticError(f"{self._named(edits)}: {error}") from None

        return [
            [value(measure, edits, by_sample) for edits, by_sample in zip(candidates, measure_sums, strict=True)]
            for measure, measure_sums in zip(self._measures, sums, strict=True)
        ]

    def _named(self, edits: Edits) -> str:
        """A candidate in words."""
        blocks = sorted({self._model.block_indices[sublayer_of(edit) // 2] for edit in edits})
        return f"with changes in block {', '.join(map(str, blocks))}" if blocks else "the unpruned model"

    def sums(self, candidates: Sequence[Edits], progress: Progress | None = None) -> Tensor:
        """What each measure sums up for each candidate on each sample, float64 `[measures, candidates, S]`."""
        journaled = torch.zeros(len(self._measures), len(candidates), self._samples, dtype=torch.float64)
        pending = torch.ones(len(candidates), self._samples, dtype=torch.bool)
        if self._journal is not None:
            self._journal.fill(candidates, journaled, pending)
            self._group.broadcast(journaled, pending)
        costs = numpy.asarray(self._costs.after_shared_prefix(candidates), dtype=numpy.float64)
        pending_cells = pending.T.numpy()
        local_cells = cells_of_rank(pending_cells, costs, self._group.rank, self._group.size)
        journaled_work = float((~pending_cells * costs).sum()) / self._group.size
        work = WorkProgress(progress, journaled_work, journaled_work + float((local_cells * costs).sum()))

        computed, sample_passes = torch.zeros_like(journaled), Passes()
        for part in self._parts(local_cells, candidates, costs):
            sample_passes += self._run(part, candidates, costs, computed, work)

        all_passes = torch.tensor([sample_passes.blocks, sample_passes.heads], dtype=torch.float64)
        self._group.all_reduce(computed, all_passes)
        self.passes += Passes(*(all_passes / self._samples).tolist())
        self.naive += naive_passes(self._present, self._model.sublayers_per_block, candidates)
        work.finish()
        return journaled + computed

    def _parts(self, local_cells: numpy.ndarray, edits: Sequence[Edits], costs: numpy.ndarray) -> list[_Part]:
        """The cells, bool `[S, candidates]`, as parts that fit in memory. Parts of the same samples share a store."""
        parts: list[_Part] = []
        stores: dict[tuple[int, int], StateStore | None] = {}
        local_samples = int(local_cells.any(1).sum())
        for block in cell_blocks(local_cells):
            candidates = [edits[i] for i in block.candidates]
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

    def _fit_pass(self, samples: int, candidates: Sequence[Edits]) -> PassSize:
        """The largest pass over these candidates that fits in memory, of no more samples than earlier rounds ran."""
        samples = min(samples, self._part_samples or samples)
        return self._budget.fit_pass(samples, len(candidates), count_slots(self._present, candidates), self._search)

    def _part_size(self, block: CellBlock, size: PassSize, cost: float) -> tuple[int, int]:
        """How many samples and candidates the parts of a block have; cost: of all its candidates on one sample."""
        samples, candidates = size.samples, size.candidates
        # Streamed blocks are read once for each part, so a journal does not make their parts smaller.
        if self._journal is not None and not self._model.streamed:
            limits = cells.JOURNALED_MULTIPLICATIONS
            limit = limits.get(self._model.device.type, limits["cuda"]) / self._tokens
            short = journaled_size(limit, cost, block, self._tokens, size.rows)
            samples, candidates = min(samples, short[0]), min(candidates, short[1])
        if self._search:
            self._part_samples = samples = min(samples, self._part_samples or samples)
        return samples, candidates

    def _store(self, part: CellBlock, candidates: Sequence[Edits], limit: int, later_parts: bool) -> StateStore | None:
        """The store for the states of these samples, None where neither later rounds nor later parts want them."""
        if not (self._search or later_parts):
            return None
        removed = self._removed if self._search else frozenset.intersection(*candidates)
        first_edited = [first_sublayer(edits - removed) for edits in candidates]
        first_blocks = [sublayer // 2 for sublayer in first_edited if sublayer is not None]
        state_bytes = self._budget.state_bytes * part.samples
        store = StateStore.within(limit, state_bytes, self._model.block_count, first_blocks, self._search)
        store.set_removed(effective(removed, self._present))
        return store

    def _run(
        self, part: _Part, edits: Sequence[Edits], costs: numpy.ndarray, computed: Tensor, work: WorkProgress
    ) -> Passes:
        """Put the sums of a part into `computed [measures, candidates, S]` and the journal; returns its passes, summed
        over its samples."""
        self._group.check()
        samples, indices = slice(part.cells.start, part.cells.stop), list(part.cells.candidates)
        candidates = [edits[i] for i in indices]
        # Each part has the original with it to compare with: it costs no more than the prefix that candidates share.
        runs = [*candidates, NO_EDITS] if self._compares else candidates
        is_stored = None if part.store is None else part.store.has
        schedule = make_schedule(self._model.block_count, self._present, runs, is_stored)
        scale = float(costs[indices].sum()) / max(1, self._costs.of_schedule(schedule))

        def advance(sequences: int, sublayer: int | None) -> None:
            self._group.check()
            work.advance(scale * sequences * self._costs.at(sublayer))

        sums = candidate_sums(
            self._model,
            self._ids[samples],
            None if self._mask is None else self._mask[samples],
            schedule,
            self._measures,
            rows=part.rows,
            samples=samples,
            original=len(candidates) if self._compares else None,
            replacements=self._replacements,
            store=part.store,
            advance=advance,
        )[:, : len(candidates)]
        computed[:, indices, samples] = sums
        if self._journal is not None:
            self._journal.add(candidates, part.cells.start, sums)
        passes = schedule.sublayer_passes / self._model.sublayers_per_block
        return Passes(part.cells.samples * passes, part.cells.samples * schedule.slots)


@dataclass(frozen=True)
class _Part:
    """Cells that are computed together, the rows that go through a block at once, and the store of their states."""

    cells: CellBlock
    rows: int
    store: StateStore | None


def costs_with(model: LayeredModel, tokens: int, replacements: Mapping[int, Replacement]) -> Costs:
    """The costs of the model in samples of `tokens` tokens, and of what stands in sublayers' places."""
    costs = model.costs(tokens)
    typical = max(costs.sublayers.values(), default=0)  # where a replacement cannot tell and stands where nothing was
    of_edits = {}
    for edit, replacement in replacements.items():
        known = replacement.multiplications(tokens)
        of_edits[edit] = costs.sublayers.get(sublayer_of(edit), typical) if known is None else known
    return replace(costs, replacements=of_edits)
