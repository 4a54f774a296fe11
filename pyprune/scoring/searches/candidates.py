"""The units that a search may remove, and when it has removed enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from pyprune.errors import InputError
from pyprune.models.load_any import AnyDecoder
from pyprune.pruning.amount import check_count
from pyprune.pruning.budget import count_for_ratio
from pyprune.pruning.depth import protected_blocks
from pyprune.scoring.as_layered import as_layered
from pyprune.scoring.removals import removal_of, units_of
from pyprune.scoring.searches.result import Choice, Unit

Ranker = Callable[[Sequence[tuple[Unit, ...]]], list[float]]
"""Scores of units that would go together, the lowest the most removable: a criterion other than perplexity."""


@dataclass(frozen=True)
class Candidates:
    """The units of a decoder that may be removed, with their parameters, in order of depth, and the amount to remove: a
    count of units, or a ratio of all `parameters`."""

    decoder: AnyDecoder
    units: dict[Unit, int]
    parameters: int
    count: int | None
    ratio: float | None

    @classmethod
    def of(
        cls,
        decoder: AnyDecoder,
        unit: str,
        protect: Iterable[int] | str | None,
        count: int | None,
        ratio: float | None,
    ) -> Candidates:
        """The candidates of a ranking, checked against the amount, without the protected blocks.

        InputError unless exactly one of count and ratio is given, for an amount that cannot be had, and when nothing
        would be left of the model.
        """
        if (ratio is None) == (count is None):
            raise InputError(f"search: ratio {ratio!r} and count {count!r}: exactly one of them is expected")
        sizes = decoder.sizes()
        protected = protected_blocks(protect, [block.index for block in sizes.blocks])
        units = {
            (kind, index): size for (kind, index), size in units_of(decoder, unit).items() if index not in protected
        }
        if not units:
            raise InputError(f"search: protect {protect!r} leaves nothing to remove")
        candidates = cls(decoder, units, sizes.parameters(), count, ratio)
        candidates._check()
        return candidates

    def without(self, units: Iterable[Unit]) -> Candidates:
        """The candidates but for these units. InputError where the amount cannot be had of the others."""
        excluded = set(units)
        others = replace(self, units={unit: size for unit, size in self.units.items() if unit not in excluded})
        if not others.units:
            raise InputError(f"search: nothing but {sorted(excluded)} could be removed, which has to stay")
        others._check()
        return others

    def steps_needed(self, removed: Sequence[int]) -> int | None:
        """How many of the units removed so far, by their parameters, make the amount; None when more are needed.

        For a ratio that is the number which comes nearest, of two as near the fewer, as in `count_for_ratio`.
        """
        if self.ratio is None:
            count = check_count(self.count)
            return count if len(removed) >= count else None
        target = self.ratio * self.parameters
        distances = [abs(total - target) for total in accumulate(removed, initial=0)]
        remaining = list(self.units.values())
        for size in removed:
            remaining.remove(size)
        nearer = remaining and abs(sum(removed) + min(remaining) - target) < distances[-1]
        return None if nearer else max(1, distances.index(min(distances)))

    def max_steps(self) -> int:
        """The most units that the amount can take."""
        return self.count_of(sorted(self.units.values()))

    def count_of(self, sizes: Sequence[int]) -> int:
        """How many units the amount takes, where units of these sizes go in this order."""
        if self.ratio is None:
            return check_count(self.count)
        return count_for_ratio(self.ratio, self.parameters, sizes)

    def _check(self) -> None:
        sizes = list(self.units.values())
        if self.count is not None and check_count(self.count) > len(sizes):
            raise InputError(f"search: count {self.count}: 1 to {len(sizes)} units can be removed")
        if self.ratio is not None:
            count_for_ratio(self.ratio, self.parameters, sorted(sizes))
        unprotected = removal_of(self.decoder, self.units) >= as_layered(self.decoder).present
        if unprotected and self.max_steps() >= len(sizes):
            raise InputError(f"search: all {len(sizes)} units would be removed; at least one must stay")


def choice_order(choice: Choice) -> tuple[float, list[tuple[int, str]]]:
    """The key that sorts choices: the lowest score first, of equal ones the one that comes first in the model."""
    return choice.score, [(index, kind) for kind, index in choice.units]
