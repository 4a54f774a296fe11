"""The losses of any candidates on fixed samples, in as many parts as memory, a journal and several processes ask for.

A part is some candidates on some samples. How the work is cut never changes the sums: each is over one sample, in
float64, and they are added up in the order of the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.runtime import memory as device_memory
from pyprune.runtime.sequence import activation_dtype
from pyprune.scoring import parts
from pyprune.scoring.cost import Costs, Passes, naive_passes
from pyprune.scoring.footprint import Split, split
from pyprune.scoring.journal import Journal
from pyprune.scoring.losses import Losses, exp_mean, losses, predicted_positions
from pyprune.scoring.parts import Stretch
from pyprune.scoring.process_group import SINGLE_PROCESS, ProcessGroup
from pyprune.scoring.removals import NO_REMOVAL, Removal, present_sublayers
from pyprune.scoring.schedule import schedule
from pyprune.scoring.states import StateStore

Progress = Callable[[int, int], None]

STEPS = 1000
"""Steps of a `Progress` in all: thousandths of the predicted work."""


class Evaluator:
    """The losses of candidates, `decoder` without some places, on checked `input_ids [S, T]`.

    mask: bool `[S, T]` or None. memory: bytes that may be taken beyond the model; what is free when None. journal:
    where finished parts are kept, and found again. group: the processes that share the work; all of them make the same
    calls and get the same results. search: the calls are rounds of a search, so states are kept between them in what
    the limit leaves.
    `passes`: what has been computed so far, by all processes; `naive`: what one forward pass for every candidate would
    have been.
    """

    def __init__(
        self,
        decoder: Decoder,
        input_ids: Tensor,
        mask: Tensor | None,
        *,
        memory: int | None = None,
        journal: Journal | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
        search: bool = False,
    ) -> None:
        self.passes, self.naive = Passes(), Passes()
        self._decoder, self._ids, self._mask = decoder, input_ids, mask
        self._journal, self._group, self._search = journal, group, search
        self._memory = _Memory(decoder, input_ids, mask is not None, memory)
        self._present, self._costs = present_sublayers(decoder), Costs.of(decoder, input_ids.shape[1])
        self._stores: dict[tuple[int, int], StateStore] = {}
        self._removed = NO_REMOVAL
        self._samples: int | None = None  # in a part, once a search has begun

    def settle(self, removed: Removal) -> None:
        """All candidates from now on lack these places."""
        self._removed = removed
        for store in self._stores.values():
            store.keep_for(removed)

    def perplexities(self, removals: Sequence[Removal], progress: Progress | None = None) -> list[float]:
        """exp(mean NLL) of the decoder without each of these removals."""
        found = self.losses(removals, progress)
        return [exp_mean(total, found.positions) for total in found.totals]

    def losses(self, removals: Sequence[Removal], progress: Progress | None = None) -> Losses:
        """The loss of each candidate on each sample. progress: told (steps done, steps in all) of this call."""
        samples = self._ids.shape[0]
        known = torch.zeros(len(removals), samples, dtype=torch.float64)
        todo = torch.ones(len(removals), samples, dtype=torch.bool)
        if self._journal is not None:
            self._journal.fill(removals, known, todo)
            self._group.broadcast(known, todo)
        costs = numpy.asarray(self._costs.apart(removals), dtype=numpy.float64)
        mine = parts.share(todo.T.numpy(), costs, self._group.rank, self._group.size)
        before = float((~todo.T.numpy() * costs).sum()) / self._group.size
        steps = _Steps(progress, before, before + float((mine * costs).sum()))
        computed, spent = torch.zeros_like(known), Passes()
        for part in self._parts(mine, removals, costs):
            spent += self._run(part, removals, costs, computed, steps)
        both = torch.tensor([spent.blocks, spent.heads], dtype=torch.float64)
        self._group.all_reduce(computed, both)
        self.passes += Passes(*(both / samples).tolist())
        self.naive += naive_passes(self._decoder, removals)
        steps.finish()
        return Losses(known + computed, predicted_positions(self._ids, self._mask))

    def _parts(self, cells: numpy.ndarray, removals: Sequence[Removal], costs: numpy.ndarray) -> list[_Part]:
        """The cells, bool `[S, candidates]`, as parts that fit in memory, each with the states kept for its samples."""
        found, ranges = [], {}
        total = int(cells.any(1).sum())
        for stretch in parts.stretches(cells):
            group = [removals[i] for i in stretch.candidates]
            plan, (samples, candidates) = self._sizes(stretch, group, float(costs[list(stretch.candidates)].sum()))
            for one in parts.cut(stretch, samples, candidates):
                key = (one.start, one.stop)
                if key not in ranges:
                    again = candidates < len(group)
                    room = self._memory.left(plan) * (one.stop - one.start) // total
                    ranges[key] = self._stores.get(key) or self._store(one, group, room, again)
                found.append(_Part(one, plan.rows, ranges[key]))
        if self._search:
            self._stores = {key: store for key, store in ranges.items() if store is not None}
        return found

    def _sizes(self, stretch: Stretch, group: Sequence[Removal], cost: float) -> tuple[Split, tuple[int, int]]:
        """How a stretch fits in memory, and how many samples and candidates its parts have."""
        tokens = self._ids.shape[1]
        samples = stretch.stop - stretch.start
        plan = self._memory.split(min(samples, self._samples or samples), group, self._search)
        sizes = plan.samples, plan.candidates
        # Blocks that are read from a file are read once for each part: there only memory cuts.
        if self._journal is not None and not self._decoder.streamed:
            most = parts.JOURNALED.get(self._decoder.device.type, parts.JOURNALED["cuda"]) / tokens
            wanted = parts.part_size(most, cost, stretch, tokens, plan.rows)
            sizes = min(sizes[0], wanted[0]), min(sizes[1], wanted[1])
        if self._search:
            self._samples = min(sizes[0], self._samples or sizes[0])
        return plan, sizes

    def _store(self, part: Stretch, group: Sequence[Removal], room: int, again: bool) -> StateStore | None:
        """Where the states of these samples are kept, if any call or a later part would want them."""
        if not (self._search or again):
            return None
        removed = self._removed if self._search else frozenset.intersection(*group)
        leaving = [min(removal - removed) // 2 for removal in group if removal - removed]
        state = self._memory.state * (part.stop - part.start)
        store = StateStore.within(room, state, len(self._decoder.blocks), leaving, self._search)
        store.keep_for(removed)
        return store

    def _run(
        self, part: _Part, removals: Sequence[Removal], costs: numpy.ndarray, computed: Tensor, steps: _Steps
    ) -> Passes:
        """Compute a part and keep what came out; what it cost, summed over its samples."""
        self._group.check()
        chosen, candidates = slice(part.cells.start, part.cells.stop), list(part.cells.candidates)
        group = [removals[i] for i in candidates]
        stored = None if part.store is None else part.store.has
        plan = schedule(len(self._decoder.blocks), self._present, group, stored)
        samples = chosen.stop - chosen.start
        scale = float(costs[candidates].sum()) / self._costs.of_schedule(plan)

        def advance(sequences: int, place: int | None) -> None:
            self._group.check()
            steps.advance(scale * sequences * self._costs.at(place))

        seen = None if self._mask is None else self._mask[chosen]
        ids = self._ids[chosen]
        found = losses(self._decoder, ids, seen, group, rows=part.rows, store=part.store, advance=advance)
        computed[candidates, chosen] = found.by_sample
        if self._journal is not None:
            self._journal.add(group, chosen.start, found.by_sample)
        return Passes(samples * plan.half_passes / 2, samples * plan.slots)


def share(progress: Progress | None, turn: int, turns: int) -> Progress | None:
    """A progress of which the call number `turn`, from 0, of about `turns` fills its part."""
    if progress is None:
        return None
    return lambda done, total: progress(turn * STEPS + done, max(turns, turn + 1) * STEPS)


@dataclass(frozen=True)
class _Part:
    """Cells that are computed together, the rows that go through a block at once, and the states kept for them."""

    cells: Stretch
    rows: int
    store: StateStore | None


class _Memory:
    """What may be taken beyond the model, and how it is divided between a pass and the states that are kept."""

    def __init__(self, decoder: Decoder, input_ids: Tensor, padded: bool, given: int | None) -> None:
        self._decoder, self._tokens, self._padded, self._given = decoder, input_ids.shape[1], padded, given
        self._limit = device_memory.available(decoder.device) if given is None else given
        self.state = self._tokens * decoder.hidden_size * activation_dtype(decoder).itemsize
        """Bytes of one state of one sample."""

    def split(self, samples: int, removals: Sequence[Removal], keeping: bool) -> Split:
        """The fewest parts that fit, in half the limit where states are kept and that does not cut candidates."""
        shape = (samples, self._tokens)
        if keeping and self._limit is not None:
            try:
                half = split(self._decoder, shape, removals, self._limit // 2, self._padded)
            except InputError:
                pass
            else:
                if half.candidates == len(removals):
                    return half
        return split(self._decoder, shape, removals, self._limit, self._padded)

    def left(self, plan: Split) -> int:
        """Bytes for states that are kept. Of memory that nobody has allotted, half stays free."""
        if self._limit is None:
            return 1 << 62
        left = max(0, self._limit - plan.bytes)
        return left // 2 if self._given is None else left


class _Steps:
    """Tells a `Progress` each thousandth of the work, once."""

    def __init__(self, progress: Progress | None, done: float, total: float) -> None:
        self._progress, self._done, self._total, self._told = progress, done, total, 0
        self.advance(0.0)

    def advance(self, work: float) -> None:
        self._done += work
        self._tell(min(STEPS - 1, int(STEPS * self._done / self._total)) if self._total else 0)

    def finish(self) -> None:
        self._tell(STEPS)

    def _tell(self, step: int) -> None:
        if step > self._told and self._progress is not None:
            self._progress(step, STEPS)
        self._told = max(step, self._told)
