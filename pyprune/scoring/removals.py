"""What a candidate lacks, as sublayer indices of a decoder.

Index 2b is the MHA sublayer of the decoder's b-th block and 2b+1 its FFN sublayer. A removal is a set of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyprune.errors import InputError
from pyprune.models.decoder import Block, Decoder
from pyprune.models.load_any import AnyDecoder
from pyprune.models.transformers_decoder import LayerBlock
from pyprune.pruning.budget import unit_parameters
from pyprune.scoring.edits import NO_EDITS, Edits

Removal = Edits
"""Indices of sublayers that do not run, which are the edits that leave them out."""

NO_REMOVAL: Removal = NO_EDITS
"""The unpruned model."""

UNIT_KINDS = {"block": ("block",), "mha": ("mha",), "ffn": ("ffn",), "mha+ffn": ("mha", "ffn")}
"""The `unit` of a ranking -> the kinds of units that are its candidates; "mha+ffn" ranks all sublayers together."""

_SUBLAYERS = {"block": (0, 1), "mha": (0,), "ffn": (1,)}


def present_sublayers(decoder: Decoder) -> Removal:
    """The indices of all sublayers that the decoder has."""
    indices = set()
    for position, block in enumerate(decoder.sizes().blocks):
        if block.mha is not None:
            indices.add(2 * position)
        if block.ffn is not None:
            indices.add(2 * position + 1)
    return frozenset(indices)


def units_of(decoder: AnyDecoder, unit: str) -> dict[tuple[str, int], int]:
    """Every candidate of a ranking, `(kind, original block index)`, in order of depth, with its parameters.

    InputError for an unknown ranking, or one that the decoder has no candidate for.
    """
    if unit not in UNIT_KINDS:
        raise InputError(f"unit: {unit!r} given; {', '.join(UNIT_KINDS)} are accepted")
    sizes = decoder.sizes()
    parameters = {kind: unit_parameters(sizes, kind) for kind in UNIT_KINDS[unit]}
    units = {
        (kind, block.index): parameters[kind][block.index]
        for block in sizes.blocks
        for kind in UNIT_KINDS[unit]
        if block.index in parameters[kind]
    }
    if not units:
        raise InputError(f"unit: {unit!r} given, but {decoder.name} has none")
    return units


def removal_of(decoder: AnyDecoder, units: Iterable[tuple[str, int]]) -> Removal:
    """The sublayers of these units, `(kind, original block index)`; InputError for a block that the decoder lacks."""
    blocks: Sequence[Block | LayerBlock] = decoder.sizes().blocks
    positions = {block.index: position for position, block in enumerate(blocks)}
    sublayers: set[int] = set()
    for kind, index in units:
        if index not in positions:
            raise InputError(f"{kind} {index}: {decoder.name} has blocks {_spans(sorted(positions))}")
        sublayers.update(2 * positions[index] + sublayer for sublayer in _SUBLAYERS[kind])
    return frozenset(sublayers)


def _spans(indices: Sequence[int]) -> str:
    """Sorted indices as a person writes them: 0-3, 7."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
