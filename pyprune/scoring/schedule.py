"""Which states run through which half when many candidates run together. Numbers only: no weights, no torch.

Candidates that lack the same places so far share one state. It splits where one of them first lacks a place that
another has; after the last block every different candidate has a state of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyprune.scoring.removals import Removal, before

Stored = Callable[[int, Removal], bool]
"""Whether the state before a block, of candidates that lack these earlier places, is kept from an earlier pass."""


@dataclass(frozen=True)
class Half:
    """One half: states to copy before it, `(from, to)` slots, then the slots that run through it."""

    splits: tuple[tuple[int, int], ...]
    run: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One block: the slots that start before it with the places that they lack, its two halves, and what every slot
    in use lacks after it."""

    starts: tuple[tuple[int, Removal], ...]
    halves: tuple[Half, Half]
    lacking: dict[int, Removal]


@dataclass(frozen=True)
class Schedule:
    """All steps, the slot in which each candidate ends, how many slots there are, and the cost in half passes: one half
    run for one state."""

    steps: tuple[Step, ...]
    slot_of: tuple[int, ...]
    slots: int
    half_passes: int

    @property
    def first(self) -> int:
        """The first block that runs at all."""
        return next((place for place, step in enumerate(self.steps) if step.starts), len(self.steps))


def schedule(blocks: int, present: Removal, removals: Sequence[Removal], stored: Stored | None = None) -> Schedule:
    """How to run all candidates through `blocks` blocks together, each different state once.

    present: the places of halves that there are; removals: what each candidate lacks. A state starts before block 0, or
    where it is `stored` (the latest such place).
    """
    wanted = [removal & present for removal in removals]
    different = list(dict.fromkeys(wanted))
    starts: dict[int, dict[Removal, list[Removal]]] = {}
    for removal in different:
        place = _latest(removal, blocks, stored)
        starts.setdefault(place, {}).setdefault(before(removal, place), []).append(removal)
    members: dict[int, list[Removal]] = {}  # slot -> the candidates that its state serves
    steps, passes = [], 0
    for block in range(blocks):
        entering = []
        for lacking, group in starts.get(block, {}).items():
            entering.append((len(members), lacking))
            members[len(members)] = group
        halves = (_half(2 * block, present, members), _half(2 * block + 1, present, members))
        passes += sum(len(half.run) for half in halves)
        lacking = {slot: before(group[0], block + 1) for slot, group in members.items()}
        steps.append(Step(tuple(entering), halves, lacking))
    ends = {removal: slot for slot, group in members.items() for removal in group}
    return Schedule(tuple(steps), tuple(ends[removal] for removal in wanted), len(members), passes)


def _half(place: int, present: Removal, members: dict[int, list[Removal]]) -> Half:
    if place not in present:
        return Half((), ())
    splits, run = [], []
    for slot, group in list(members.items()):
        lacking = [removal for removal in group if place in removal]
        having = [removal for removal in group if place not in removal]
        if having:
            run.append(slot)
        if having and lacking:
            splits.append((slot, len(members)))
            members[slot], members[len(members)] = having, lacking
    return Half(tuple(splits), tuple(run))


def _latest(removal: Removal, blocks: int, stored: Stored | None) -> int:
    """The last block before which this candidate's state is stored, else 0."""
    if stored is None:
        return 0
    return next((block for block in range(blocks - 1, 0, -1) if stored(block, before(removal, block))), 0)
