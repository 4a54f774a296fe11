"""Which blocks and halves a run leaves out, without touching the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder


class HasSkipSets(Protocol):
    """What a `Pruning` offers to the engine: the blocks, MHA halves and FFN halves it removes."""

    def skip_sets(self) -> tuple[frozenset[int], frozenset[int], frozenset[int]]: ...


Skip = None | Iterable[int] | Mapping[str, Iterable[int]] | HasSkipSets


@dataclass(frozen=True)
class Plan:
    """For each block of a decoder, in order, whether its MHA and its FFN run."""

    mha: tuple[bool, ...]
    ffn: tuple[bool, ...]


def plan(decoder: Decoder, skip: Skip = None) -> Plan:
    """Turn `skip` (original indices: block indices, a `Pruning`, or {"blocks", "mha", "ffn"}) into a Plan.

    A half that the decoder no longer has is simply left out. InputError: an index outside the original model, an
    unknown key, a pruning that also narrows widths, or nothing left to run.
    """
    blocks, mha, ffn = _sets(skip)
    count = decoder.original_blocks
    for kind, indices in (("block", blocks), ("MHA of block", mha), ("FFN of block", ffn)):
        for index in sorted(indices):
            if not 0 <= index < count:
                raise InputError(f"skip: {kind} {index} does not exist; 0 to {count - 1} are accepted")
    result = Plan(
        tuple(b.mha is not None and b.index not in blocks and b.index not in mha for b in decoder.blocks),
        tuple(b.ffn is not None and b.index not in blocks and b.index not in ffn for b in decoder.blocks),
    )
    if not any(result.mha) and not any(result.ffn):
        raise InputError(f"skip: all {count} blocks are left out; at least one MHA or FFN must run")
    return result


def _sets(skip: Skip) -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
    nothing: frozenset[int] = frozenset()
    if skip is None:
        return nothing, nothing, nothing
    if hasattr(skip, "skip_sets"):
        return skip.skip_sets()
    if isinstance(skip, Mapping):
        unknown = sorted(set(skip) - {"blocks", "mha", "ffn"})
        if unknown:
            raise InputError(f"skip: unknown key {unknown[0]!r}; blocks, mha and ffn are accepted")
        return _indices(skip.get("blocks")), _indices(skip.get("mha")), _indices(skip.get("ffn"))
    return _indices(skip), nothing, nothing


def _indices(values: Any) -> frozenset[int]:
    if values is None:
        return frozenset()
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InputError(f"skip: {values!r} is not a list of block indices")
    values = list(values)
    for value in values:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise InputError(f"skip: {value!r} is not a block index; whole numbers are accepted")
    return frozenset(value.__index__() for value in values)
