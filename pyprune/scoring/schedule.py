"""Which states run through which sublayer when many candidates run together. Numbers only: no weights, no torch.

Candidates with the same edits so far share one state, so a shared prefix runs once. The state splits at the first
sublayer that its candidates do not treat alike; after the last block every different candidate has its own. Two that
make the same edit at the same place split behind it, if at all: what stands in the sublayer's place runs once for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pyprune.scoring.edits import Edits, edit_at, edits_before, effective, is_replacement

IsStored = Callable[[int, Edits], bool]
"""Whether the state before a block, of candidates with these earlier edits, is kept from an earlier pass."""


@dataclass(frozen=True)
class SublayerStep:
    """One sublayer: the states to copy before it, `(source, target)` slots, then the slots that run through it, and by
    edit those that run through what stands in its place."""

    splits: tuple[tuple[int, int], ...]
    slots: tuple[int, ...]
    replaced: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def passes(self) -> int:
        """How many states run here."""
        return len(self.slots) + sum(map(len, self.replaced.values()))


@dataclass(frozen=True)
class BlockStep:
    """One block: the slots that start before it with their edits so far, its MHA and FFN sublayers, and the edits of
    each slot in use before the next block."""

    starts: tuple[tuple[int, Edits], ...]
    sublayers: tuple[SublayerStep, SublayerStep]
    edits_before_next: dict[int, Edits]


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
    blocks: int, present: frozenset[int], candidates: Sequence[Edits], is_stored: IsStored | None = None
) -> Schedule:
    """How to run all candidates through `blocks` blocks together, each different state once.

    present: the sublayers that there are; candidates: the edits of each. A state starts before block 0, or at the
    latest block before which it is stored.
    """
    distinct = [effective(edits, present) for edits in candidates]
    starts: dict[int, dict[Edits, list[Edits]]] = {}  # block -> the state's edits -> the candidates it serves
    for edits in dict.fromkeys(distinct):
        start = _latest_stored(edits, blocks, is_stored)
        starts.setdefault(start, {}).setdefault(edits_before(edits, start), []).append(edits)
    served: dict[int, list[Edits]] = {}  # slot -> the candidates that its state serves
    steps, sublayer_passes = [], 0
    for block in range(blocks):
        started = []
        for edits, served_candidates in starts.get(block, {}).items():
            started.append((len(served), edits))
            served[len(served)] = served_candidates
        sublayers = _sublayer_step(2 * block, present, served), _sublayer_step(2 * block + 1, present, served)
        sublayer_passes += sum(step.passes for step in sublayers)
        before_next = {slot: edits_before(alike[0], block + 1) for slot, alike in served.items()}
        steps.append(BlockStep(tuple(started), sublayers, before_next))
    slots = {edits: slot for slot, alike in served.items() for edits in alike}
    return Schedule(tuple(steps), tuple(slots[edits] for edits in distinct), len(served), sublayer_passes)


def count_slots(present: frozenset[int], candidates: Iterable[Edits]) -> int:
    """The slots that a schedule of these candidates has: one for each that differs in what it does."""
    return len({effective(edits, present) for edits in candidates})


def _sublayer_step(sublayer: int, present: frozenset[int], served: dict[int, list[Edits]]) -> SublayerStep:
    """The step of one sublayer; a state that splits gets a new slot in `served` for each edit but the first way."""
    splits: list[tuple[int, int]] = []
    running: list[int] = []
    replaced: dict[int, list[int]] = {}
    for slot, candidates in list(served.items()):
        ways: dict[int | None, list[Edits]] = {}  # the edit, None for the sublayer itself -> the candidates
        for edits in candidates:
            ways.setdefault(edit_at(edits, sublayer), []).append(edits)
        # The sublayer itself keeps the slot: those that it runs for lie side by side.
        for place, (edit, alike) in enumerate(sorted(ways.items(), key=lambda way: way[0] is not None)):
            target = slot
            if place:
                target = len(served)
                splits.append((slot, target))
            served[target] = alike
            if edit is None and sublayer in present:
                running.append(target)
            elif edit is not None and is_replacement(edit):
                replaced.setdefault(edit, []).append(target)
    return SublayerStep(tuple(splits), tuple(running), {edit: tuple(slots) for edit, slots in replaced.items()})


def _latest_stored(edits: Edits, blocks: int, is_stored: IsStored | None) -> int:
    """The last block before which this candidate's state is stored, else 0."""
    if is_stored is None:
        return 0
    return next((block for block in range(blocks - 1, 0, -1) if is_stored(block, edits_before(edits, block))), 0)
