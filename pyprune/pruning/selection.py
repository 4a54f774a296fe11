"""Which KV groups and neurons stay, given their importance: the rules that width methods share.

`highest` keeps a number in one block (the same share in every block, `budget.quotas`). `best_within_budget` ranks the
units of all blocks together and keeps the best that fit the budget, so that blocks come to differ in width.
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
    """Indices of the `count` highest scores, ascending; of equal scores the lower index is removed first."""
    order = torch.sort(scores, stable=True).indices
    return sorted(order[len(scores) - count :].tolist())


@dataclass(frozen=True)
class Bundle:
    """Units that stay or go together: `size` units of one kind in block `index`, ranked `rank`-th there from the
    best."""

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
    result: list[Bundle] = []
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
        result += [Bundle(block.index, kind, rank, size, mean, size * cost) for rank, mean in enumerate(means)]
    return result


def best_within_budget(
    candidates: Sequence[Bundle], budget: int, slack: float, *, strictly_above: bool = False
) -> list[Bundle]:
    """The best of all blocks whose parameters together come nearest to `budget`.

    The best bundle of each kind in each block stays in any case: no sublayer is emptied. `strictly_above`: only those
    strictly above the score at that cut, as FLAP's code has it, which leaves out the one that the cut fell on. Where
    that misses the budget by more than `slack` parameters, as it can where a KV group is a large part of a small model,
    those that no longer fit are passed over for the next ones that do.
    """
    required = [bundle for bundle in candidates if bundle.rank == 0]
    optional = sorted((bundle for bundle in candidates if bundle.rank), key=lambda bundle: -bundle.score)
    required_cost = sum(bundle.cost for bundle in required)
    totals = torch.tensor([required_cost, *(bundle.cost for bundle in optional)], dtype=torch.int64).cumsum(0)
    kept = optional[: int((totals - budget).abs().argmin())]
    if strictly_above:
        kept = [bundle for bundle in kept if bundle.score > kept[-1].score]
    if abs(required_cost + sum(bundle.cost for bundle in kept) - budget) <= slack:
        return required + kept
    kept, remaining = [], budget - required_cost
    for bundle in optional:
        if bundle.cost <= remaining:
            kept.append(bundle)
            remaining -= bundle.cost
    return required + kept


def without_lowest(candidates: Sequence[Bundle], count: int) -> list[Bundle]:
    """All but the `count` lowest of all blocks; the best of each block stays in any case."""
    removable = sorted((bundle for bundle in candidates if bundle.rank), key=lambda bundle: bundle.score)
    if count > len(removable):
        raise InputError(f"remove_groups {count}: up to {len(removable)} KV groups can go; one stays in every block")
    removed = {(bundle.index, bundle.rank) for bundle in removable[:count]}
    return [bundle for bundle in candidates if (bundle.index, bundle.rank) not in removed]


def units_of_bundles(importance: Importance, kept: Iterable[Bundle]) -> Kept:
    """The units of these bundles."""
    counts: dict[str, dict[int, int]] = {
        kind: dict.fromkeys(getattr(importance, kind), 0) for kind in ("groups", "neurons")
    }
    for bundle in kept:
        counts[bundle.kind][bundle.index] += bundle.size
    groups, neurons = (
        {index: highest(getattr(importance, kind)[index], count) for index, count in counts[kind].items()}
        for kind in ("groups", "neurons")
    )
    return Kept(groups, neurons)
