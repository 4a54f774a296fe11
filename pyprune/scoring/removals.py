"""What a candidate lacks, as places in a decoder: the frame in which many candidates run together.

Place 2b is the attention half of the decoder's b-th block and place 2b+1 its FFN half. A removal is a set of places.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.pruning.budget import unit_parameters

Removal = frozenset[int]
"""Places that do not run. Nothing removed is the whole model."""

NO_REMOVAL: Removal = frozenset()

RANKED = {"block": ("block",), "mha": ("mha",), "ffn": ("ffn",), "mha+ffn": ("mha", "ffn")}
"""What can be ranked, and the kinds of units that are candidates then: "mha+ffn" ranks 2L halves together."""

_HALVES = {"block": (0, 1), "mha": (0,), "ffn": (1,)}


def present_sublayers(decoder: Decoder) -> Removal:
    """The places of all halves that the decoder has."""
    halves = ((2 * b, block.mha, block.ffn) for b, block in enumerate(decoder.sizes().blocks))
    return frozenset(p + half for p, *parts in halves for half, part in enumerate(parts) if part is not None)


def units_of(decoder: Decoder, unit: str) -> dict[tuple[str, int], int]:
    """Every candidate of a ranking, `(kind, original block index)`, in order of depth, with its parameters.

    InputError for an unknown ranking, or one that the decoder has no candidate for.
    """
    if unit not in RANKED:
        raise InputError(f"unit: {unit!r} given; {', '.join(RANKED)} are accepted")
    sizes = decoder.sizes()
    parameters = {kind: unit_parameters(sizes, kind) for kind in RANKED[unit]}
    found = {
        (kind, block.index): parameters[kind][block.index]
        for block in sizes.blocks
        for kind in RANKED[unit]
        if block.index in parameters[kind]
    }
    if not found:
        raise InputError(f"unit: {unit!r} given, but {decoder.name} has none")
    return found


def removal_of(decoder: Decoder, units: Iterable[tuple[str, int]]) -> Removal:
    """The places of these units, `(kind, original block index)`; InputError for a block that the decoder lacks."""
    blocks = {block.index: place for place, block in enumerate(decoder.sizes().blocks)}
    places: set[int] = set()
    for kind, index in units:
        if index not in blocks:
            raise InputError(f"{kind} {index}: {decoder.name} has blocks {_spans(sorted(blocks))}")
        places.update(2 * blocks[index] + half for half in _HALVES[kind])
    return frozenset(places)


def before(removal: Removal, block: int) -> Removal:
    """The places of a removal that come before a block."""
    return frozenset(place for place in removal if place < 2 * block)


def _spans(indices: Sequence[int]) -> str:
    """Sorted indices as a person writes them: 0-3, 7."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
