"""Many candidates in one layer-major pass.

Each block's weights are read once, and all states that have to run through it go in chunks of rows. The states are the
residual streams `[slots, S, T, hidden]` of all different candidates. `pyprune.scoring.heads` measures the last ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pyprune.scoring.footprint import SKINNY_ROWS, chunk_size
from pyprune.scoring.heads import Advance, Part, measured
from pyprune.scoring.layered_model import BlockPass, LayeredModel, RunSublayer
from pyprune.scoring.measures import Measure
from pyprune.scoring.replacements import Replacement
from pyprune.scoring.schedule import Schedule, SublayerStep
from pyprune.scoring.state_store import StateStore


@torch.inference_mode()
def candidate_sums(
    model: LayeredModel,
    input_ids: Tensor,
    mask: Tensor | None,
    schedule: Schedule,
    measures: Sequence[Measure],
    *,
    rows: int,
    samples: slice | None = None,
    original: int | None = None,
    replacements: Mapping[int, Replacement] | None = None,
    store: StateStore | None = None,
    advance: Advance | None = None,
) -> Tensor:
    """What each measure sums up for each candidate of the schedule on each sample: float64 `[measures, candidates, S]`.

    input_ids: checked, `[S, T]`. mask: bool `[S, T]`, False where a token is padding, or None. samples: which of those
    that the measures know these are; all when None. rows: how many go through a block together, at least one sample's
    T. original: the candidate of the schedule that has no edits, for measures that compare with it. replacements: what
    stands in a sublayer's place, by the edit. store: states of earlier passes over the same samples, by which the
    schedule was made; states of this pass are added.
    """
    advance = advance or (lambda sequences, sublayer: None)
    on_samples = model.on(input_ids, mask)
    first, replacements = schedule.first_block, replacements or {}
    shape = (schedule.slots, *input_ids.shape, model.hidden_size)
    states = torch.empty(shape, dtype=model.state_dtype, device=model.device)
    chunk_limit = max(1, rows // input_ids.shape[1])
    for position, block in enumerate(on_samples.blocks(first), start=first):
        step = schedule.steps[position]
        for slot, edits in step.starts:
            if position == 0:
                on_samples.embed(states[slot])
            elif store is None:
                raise ValueError(f"the schedule begins at block {position}; a store with its states is expected")
            else:
                states[slot] = store.get(position, edits)
        for offset, sublayer_step in enumerate(step.sublayers):
            runner = _Runner(states, chunk_limit, advance)
            runner.run_sublayer(2 * position + offset, offset, sublayer_step, block, replacements)
        del block
        if store is not None and position + 1 < model.block_count:
            for slot, edits in step.edits_before_next.items():
                store.offer(position + 1, edits, states[slot])
    part = Part(
        on_samples=on_samples,
        samples=samples or slice(0, len(input_ids)),
        states=states,
        original=None if original is None else schedule.slot_of[original],
        vocab_size=model.vocab_size,
        chunk_samples=chunk_limit,
    )
    return measured(part, measures, advance)[:, list(schedule.slot_of)]


class _Runner:
    """How chunks of the states `[slots, S, T, hidden]` go through a sublayer, in place."""

    def __init__(self, states: Tensor, chunk_limit: int, advance: Advance) -> None:
        self._states, self._chunk_limit, self._advance = states, chunk_limit, advance

    def run_sublayer(
        self, sublayer: int, offset: int, step: SublayerStep, block: BlockPass, replacements: Mapping[int, Replacement]
    ) -> None:
        """Copy the states that split here, then run each through the sublayer or what stands in its place."""
        for source, target in step.splits:
            self._states[target] = self._states[source]
        run = block.sublayer(offset) if step.slots else None
        if run is not None:
            self._run(sublayer, step.slots, run)
        for edit, slots in step.replaced.items():
            self._run(edit, slots, replacements[edit].on(block))

    def _run(self, sublayer: int, slots: Sequence[int], run: RunSublayer) -> None:
        for first, stop in _ranges(slots):
            for x, samples in self._chunks(first, stop):
                x.copy_(_run_padded(run, x, samples))
                self._advance(len(x), sublayer)

    def _chunks(self, first: int, stop: int) -> Iterator[tuple[Tensor, list[int]]]:
        """The sequences of slots `first` .. `stop`-1, a chunk at a time: states, and which samples they are."""
        samples = self._states.shape[1]
        flat = self._states.flatten(0, 1)
        begin, end = first * samples, stop * samples
        while begin < end:
            size = chunk_size(end - begin, self._chunk_limit)
            yield flat[begin : begin + size], [index % samples for index in range(begin, begin + size)]
            begin += size


def _run_padded(run: RunSublayer, x: Tensor, samples: list[int]) -> Tensor:
    """Run a chunk; a skinny one repeated until it is not, so that its sequences come out as they would in a large one.

    For skinny activations the operators have other kernels, with other last bits.
    """
    copies = SKINNY_ROWS // (x.shape[0] * x.shape[1]) + 1
    if copies == 1:
        return run(x, samples)
    return run(x.repeat(copies, 1, 1), samples * copies)[: len(x)]


def _ranges(slots: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending slots as ranges `first` .. `stop`-1 that lie side by side."""
    first = 0
    for position in range(1, len(slots) + 1):
        if position == len(slots) or slots[position] != slots[position - 1] + 1:
            yield slots[first], slots[position - 1] + 1
            first = position
