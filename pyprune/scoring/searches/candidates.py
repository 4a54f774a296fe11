"""What a search may remove, and when it has removed enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.pruning.amount import check_count
from pyprune.pruning.budget import count_for_ratio
from pyprune.pruning.depth import protected_blocks
from pyprune.scoring.removals import present_sublayers, removal_of, units_of
from pyprune.scoring.searches.result import Choice, Unit

Ranker = Callable[[Sequence[tuple[Unit, ...]]], list[float]]
"""Scores of units that would go together, the lowest the most removable: a criterion other than perplexity."""


@dataclass(frozen=True)
class Candidates:
    """The units of a decoder that may go, with their parameters, in order of depth, and how much shall go: a count of
    units, or a ratio of all `parameters`."""

    decoder: Decoder
    units: dict[Unit, int]
    parameters: int
    count: int | None
    ratio: float | None

    @classmethod
    def of(
        cls,
        decoder: Decoder,
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
        units = {one: size for one, size in units_of(decoder, unit).items() if one[1] not in protected}
        if not units:
            raise InputError(f"search: protect {protect!r} leaves nothing to remove")
        found = cls(decoder, units, sizes.parameters(), count, ratio)
        found._check()
        return found

    def enough(self, removed: Sequence[int]) -> int | None:
        """How many of the units removed so far, by their parameters, are the amount; None when more have to go.

        For a ratio that is the number which comes nearest, of two as near the fewer, as in `count_for_ratio`.
        """
        if self.count is not None:
            return self.count if len(removed) >= self.count else None
        target = self.ratio * self.parameters
        far = [abs(gone - target) for gone in accumulate(removed, initial=0)]
        left = list(self.units.values())
        for size in removed:
            left.remove(size)
        nearer = left and abs(sum(removed) + min(left) - target) < far[-1]
        return None if nearer else max(1, far.index(min(far)))

    def most(self) -> int:
        """The most units that may have to go."""
        return self.count or count_for_ratio(self.ratio, self.parameters, sorted(self.units.values()))

    def _check(self) -> None:
        sizes = list(self.units.values())
        if self.count is not None and check_count(self.count) > len(sizes):
            raise InputError(f"search: count {self.count}: 1 to {len(sizes)} units can be removed")
        if self.ratio is not None:
            count_for_ratio(self.ratio, self.parameters, sorted(sizes))
        everything = removal_of(self.decoder, self.units) >= present_sublayers(self.decoder)
        if everything and self.most() >= len(sizes):
            raise InputError(f"search: all {len(sizes)} units would be removed; at least one must stay")


def place_of(choice: Choice) -> tuple[float, list[tuple[int, str]]]:
    """Sorts choices: the lowest score first, of equal ones the one that comes first in the model."""
    return choice.score, [(index, kind) for kind, index in choice.units]
