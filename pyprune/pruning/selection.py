"""Which groups and neurons stay, given how much each matters: the rules that width methods share.

`highest` keeps a number in one block (the same share in every block, `budget.quotas`); `ranked` sorts the units of all
blocks together and keeps the best that fit the budget, so that blocks come to differ in width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.pruning.budget import BlockCosts
from pyprune.pruning.importance import Importance, Kept


def highest(scores: Tensor, count: int) -> list[int]:
    """Places of the `count` highest scores, ascending; of equal scores the lower place goes first, as everywhere."""
    order = torch.sort(scores, stable=True).indices
    return sorted(order[len(scores) - count :].tolist())


@dataclass(frozen=True)
class Bundle:
    """Units that stay or go together: `size` units of one kind in one block, ranked `rank`-th there from the best."""

    index: int
    kind: str
    rank: int
    size: int
    score: float
    cost: int


def bundles(importance: Importance, costs: Iterable[BlockCosts], kind: str, align: int = 1) -> list[Bundle]:
    """The KV groups ("groups") or neurons ("neurons") of these blocks, the best of each block first.

    `align`: neurons in bundles of as many, so that whatever stays is a multiple; a bundle scores the mean of its
    neurons. Those of a last, partial bundle cannot stay and are left out.
    """
    found = []
    for block in costs:
        scores = getattr(importance, kind).get(block.index)
        if scores is None:
            continue
        cost = block.per_group if kind == "groups" else block.per_neuron
        size = align if kind == "neurons" else 1
        if size > len(scores):
            raise InputError(f"align {align}: block {block.index} has {len(scores)} neurons; up to that is accepted")
        best = torch.sort(scores, stable=True).values.flip(0)
        means = best[: len(best) // size * size].view(-1, size).mean(1).tolist()
        found += [Bundle(block.index, kind, rank, size, mean, size * cost) for rank, mean in enumerate(means)]
    return found


def ranked(candidates: Sequence[Bundle], budget: int, slack: float, *, above: bool = False) -> list[Bundle]:
    """The best of all blocks whose parameters together come nearest to `budget`.

    The best bundle of each kind in each block stays in any case: no half is emptied. `above`: only those strictly above
    the score at that cut, as FLAP's code has it, which leaves out the one that the cut fell on. Where that misses the
    budget by more than `slack` parameters, as it can where a KV group is a large part of a small model, those that no
    longer fit are passed over for the next ones that do.
    """
    firsts = [one for one in candidates if one.rank == 0]
    rest = sorted((one for one in candidates if one.rank), key=lambda one: -one.score)
    least = sum(one.cost for one in firsts)
    totals = torch.tensor([least, *(one.cost for one in rest)], dtype=torch.int64).cumsum(0)
    kept = rest[: int((totals - budget).abs().argmin())]
    if above:
        kept = [one for one in kept if one.score > kept[-1].score]
    if abs(least + sum(one.cost for one in kept) - budget) <= slack:
        return firsts + kept
    kept, left = [], budget - least
    for one in rest:
        if one.cost <= left:
            kept.append(one)
            left -= one.cost
    return firsts + kept


def fewest(candidates: Sequence[Bundle], removed: int) -> list[Bundle]:
    """All but the `removed` lowest of all blocks; the best of each block stays in any case."""
    spare = sorted((one for one in candidates if one.rank), key=lambda one: one.score)
    if removed > len(spare):
        raise InputError(f"remove_groups {removed}: up to {len(spare)} KV groups can go; one stays in every block")
    gone = {(one.index, one.rank) for one in spare[:removed]}
    return [one for one in candidates if (one.index, one.rank) not in gone]


def places(importance: Importance, chosen: Iterable[Bundle]) -> Kept:
    """The units of these bundles."""
    counts: dict[str, dict[int, int]] = {
        kind: dict.fromkeys(getattr(importance, kind), 0) for kind in ("groups", "neurons")
    }
    for one in chosen:
        counts[one.kind][one.index] += one.size
    groups, neurons = (
        {index: highest(getattr(importance, kind)[index], count) for index, count in counts[kind].items()}
        for kind in ("groups", "neurons")
    )
    return Kept(groups, neurons)
