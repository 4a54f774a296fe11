"""Which states run through which sublayer when many candidates run together. Numbers only: no weights, no torch.

Candidates that lack the same sublayers so far share one state, so a shared prefix runs once. The state splits at the
first sublayer that only some of its candidates lack; after the last block every different candidate has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pyprune.scoring.removals import Removal, removed_before

IsStored = Callable[[int, Removal], bool]
"""Whether the state before a block, of candidates that lack these earlier sublayers, is kept from an earlier pass."""


@dataclass(frozen=True)
class SublayerStep:
    """One sublayer: the states to copy before it, `(source, target)` slots, then the slots that run through it."""

    splits: tuple[tuple[int, int], ...]
    slots: tuple[int, ...]


@dataclass(frozen=True)
class BlockStep:
    """One block: the slots that start before it with what they lack so far, its MHA and FFN sublayers, and what each
    slot in use lacks before the next block."""

    starts: tuple[tuple[int, Removal], ...]
    sublayers: tuple[SublayerStep, SublayerStep]
    removed_before_next: dict[int, Removal]


@dataclass(frozen=True)
class Schedule:
    """All block steps, the slot in which each candidate ends, how many slots there are, and the cost in sublayer
    passes: one sublayer run for one state."""

    steps: tuple[BlockStep, ...]
    slot_of: tuple[int, ...]
    slots: int
    sublayer_passes: int

    @property
    def first_block(self) -> int:
        """The first block that runs at all."""
        return next((block for block, step in enumerate(self.steps) if step.starts), len(self.steps))


def make_schedule(
    blocks: int, present: Removal, removals: Sequence[Removal], is_stored: IsStored | None = None
) -> Schedule:
    """How to run all candidates through `blocks` blocks together, each different state once.

    present: the sublayers that there are; removals: what each candidate lacks. A state starts before block 0, or at the
    latest block before which it is stored.
    """
    effective = [removal & present for removal in removals]
    starts: dict[int, dict[Removal, list[Removal]]] = {}  # block -> what the state lacks -> the candidates it serves
    for removal in dict.fromkeys(effective):
        start = _latest_stored(removal, blocks, is_stored)
        starts.setdefault(start, {}).setdefault(removed_before(removal, start), []).append(removal)
    served: dict[int, list[Removal]] = {}  # slot -> the candidates that its state serves
    steps, sublayer_passes = [], 0
    for block in range(blocks):
        started = []
        for lacking, candidates in starts.get(block, {}).items():
            started.append((len(served), lacking))
            served[len(served)] = candidates
        sublayers = _sublayer_step(2 * block, present, served), _sublayer_step(2 * block + 1, present, served)
        sublayer_passes += sum(len(step.slots) for step in sublayers)
        lacking_next = {slot: removed_before(candidates[0], block + 1) for slot, candidates in served.items()}
        steps.append(BlockStep(tuple(started), sublayers, lacking_next))
    slots = {removal: slot for slot, candidates in served.items() for removal in candidates}
    return Schedule(tuple(steps), tuple(slots[removal] for removal in effective), len(served), sublayer_passes)


def count_slots(present: Removal, removals: Iterable[Removal]) -> int:
    """The slots that a schedule of these candidates has: one for each that differs in the sublayers that there are."""
    return len({removal & present for removal in removals})


def _sublayer_step(sublayer: int, present: Removal, served: dict[int, list[Removal]]) -> SublayerStep:
    """The step of one sublayer; a state that splits gets a new slot in `served` for the candidates that lack it."""
    if sublayer not in present:
        return SublayerStep((), ())
    splits, running = [], []
    for slot, candidates in list(served.items()):
        lacking = [removal for removal in candidates if sublayer in removal]
        having = [removal for removal in candidates if sublayer not in removal]
        if having:
            running.append(slot)
        if having and lacking:
            splits.append((slot, len(served)))
            served[slot], served[len(served)] = having, lacking
    return SublayerStep(tuple(splits), tuple(running))


def _latest_stored(removal: Removal, blocks: int, is_stored: IsStored | None) -> int:
    """The last block before which this candidate's state is stored, else 0."""
    if is_stored is None:
        return 0
    return next((block for block in range(blocks - 1, 0, -1) if is_stored(block, removed_before(removal, block))), 0)
