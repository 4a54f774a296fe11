"""A width method, the task that it is given, and the selection that it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pyprune.models.decoder import Decoder
from pyprune.progress import Progress
from pyprune.pruning.budget import TOLERANCE, BlockCosts, check_target, group_share, quotas, require_near
from pyprune.pruning.importance import Importance, Kept
from pyprune.pruning.selection import best_within_budget, bundles, highest, units_of_bundles, without_lowest


@dataclass(frozen=True)
class Selection:
    """The units that a method keeps, and what it adds to biases ("blocks.3.o.bias" -> `[hidden]`)."""

    kept: Kept
    biases: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A decoder to narrow to `target` parameters.

    `calibration [samples, seq_len]`: token ids, None for a method that takes none. `costs`: of the blocks that are
    narrowed; the others stay as they are. `options`: the alternative of each of the method's options. `align`: FFN
    widths that stay are multiples of it. `units`: "heads", "neurons" or "both". `remove_groups`: KV groups that go in
    all, where the method takes that. `added`: parameters of the biases that the method adds.
    """

    decoder: Decoder
    target: int
    costs: tuple[BlockCosts, ...]
    options: frozenset[str] = frozenset()
    calibration: Tensor | None = None
    align: int | None = None
    units: str = "both"
    remove_groups: int | None = None
    added: int = 0
    progress: Progress = lambda done, total: None

    def option(self, *alternatives: str) -> str:
        """The alternative that was chosen of these."""
        return next(alternative for alternative in alternatives if alternative in self.options)

    def ids(self) -> Tensor:
        """The calibration of a method that needs it."""
        assert self.calibration is not None  # `width` has asked for it
        return self.calibration

    def parameters(self) -> int:
        """Parameters of the unpruned model with the biases that are added."""
        return self.decoder.parameters() + self.added

    def groups_to_remove(self) -> int | None:
        """How many KV groups go in all where they are ranked apart from the neurons: as many as asked for, or as a
        uniform narrowing takes. None where only one kind goes."""
        if self.units != "both" or self.remove_groups is not None:
            return self.remove_groups
        kept = group_share(self.costs, self.parameters() - self.target)
        return sum(block.kv_groups - n for block, n in zip(self.costs, kept, strict=True))

    def quotas(self) -> dict[int, tuple[int, int]]:
        """Block index -> KV groups and FFN width that stay, the same share in every block."""
        removed = None if self.remove_groups is None else self.remove_groups // len(self.costs)
        kept = quotas(
            self.costs, self.parameters(), self.target, align=self.align, units=self.units, removed_groups=removed
        )
        return {block.index: sizes for block, sizes in zip(self.costs, kept, strict=True)}

    def within_blocks(self, importance: Importance) -> Kept:
        """The best of each block, the same share in every block."""
        sizes = self.quotas()
        groups = {i: highest(s, sizes[i][0] if i in sizes else len(s)) for i, s in importance.groups.items()}
        neurons = {i: highest(s, sizes[i][1] if i in sizes else len(s)) for i, s in importance.neurons.items()}
        return Kept(groups, neurons)

    def across_blocks(
        self, importance: Importance, *, removed_groups: int | None = None, strictly_above: bool = False
    ) -> Kept:
        """The best of all blocks within the budget, groups and neurons ranked together.

        `removed_groups`: so many of the lowest KV groups of all blocks go, and the neurons are ranked by themselves.
        `strictly_above` as in `selection.best_within_budget`. InputError when that misses the target by more than 0.5
        %.
        """
        check_target(self.target, self.parameters(), self.align)
        narrowed = {block.index for block in self.costs}
        removable = Importance(
            {index: s for index, s in importance.groups.items() if index in narrowed and self.units != "neurons"},
            {index: s for index, s in importance.neurons.items() if index in narrowed and self.units != "heads"},
        )
        untouched = self.parameters() - sum(
            (block.index in removable.groups) * block.groups + (block.index in removable.neurons) * block.neurons
            for block in self.costs
        )
        groups = bundles(removable, self.costs, "groups")
        neurons = bundles(removable, self.costs, "neurons", self.align or 1)
        kept_groups = [] if removed_groups is None else without_lowest(groups, removed_groups)
        candidates = [*groups, *neurons] if removed_groups is None else neurons
        budget = self.target - untouched - sum(bundle.cost for bundle in kept_groups)
        slack = TOLERANCE * self.target
        kept_bundles = [
            *kept_groups,
            *best_within_budget(candidates, budget, slack, strictly_above=strictly_above),
        ]
        actual = untouched + sum(bundle.cost for bundle in kept_bundles)
        require_near(actual, self.target, "selection over all blocks", self.align)
        kept = units_of_bundles(removable, kept_bundles)
        return Kept(
            {index: kept.groups.get(index, list(range(len(s)))) for index, s in importance.groups.items()},
            {index: kept.neurons.get(index, list(range(len(s)))) for index, s in importance.neurons.items()},
        )


class Style(NamedTuple):
    """How a model is drawn in figures: a colour (#RRGGBB) and a marker of matplotlib's."""

    colour: str
    marker: str


@dataclass(frozen=True)
class Method:
    """One way to narrow a model.

    `label`: its name in sentences. `style` and `padded_style`: how figures draw it, as it comes and with the FFN width
    padded. `select`: the selection for a task. `keep`: the part of it that turns importance into the units that stay.
    `options`: the alternatives of each, of which a variant names one; the first is the default. `calibrated`: whether
    it reads calibration, and at least `least_tokens` of a sample (2 where one is predicted). `protect`: which blocks
    stay whole unless said otherwise, for a number of blocks. `adds_biases` and `removes_groups`: whether it adds biases
    to o and down, and takes `remove_groups`, with these options.
    """

    select: Callable[[Task], Selection]
    keep: Callable[[Task, Importance], Kept]
    options: tuple[tuple[str, ...], ...] = ()
    calibrated: bool = True
    least_tokens: int = 1
    protect: Callable[[int], str] = lambda blocks: ""
    adds_biases: Callable[[frozenset[str]], bool] = lambda options: False
    removes_groups: Callable[[frozenset[str]], bool] = lambda options: False
    label: str = field(kw_only=True)
    style: Style = field(kw_only=True)
    padded_style: Style = field(kw_only=True)


def cpu64(scores: Tensor) -> Tensor:
    """Scores as they are compared: float64 on the CPU."""
    return scores.detach().to("cpu", torch.float64)
