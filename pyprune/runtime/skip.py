"""Which blocks and halves a run leaves out, without touching the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from pyprune.checks import is_whole
from pyprune.errors import InputError
from pyprune.models.decoder import Decoder


class HasSkipSets(Protocol):
    """What a `Pruning` offers to the engine: the blocks, MHA halves and FFN halves it removes."""

    def skip_sets(self) -> tuple[frozenset[int], frozenset[int], frozenset[int]]: ...


Skip = None | Iterable[int] | Mapping[str, Iterable[int]] | HasSkipSets | Tensor
"""Block indices, {"blocks", "mha", "ffn"} or a `Pruning`, known to the host; or a device mask (`device_mask`)."""


@dataclass(frozen=True)
class Plan:
    """For each block of a decoder, in order, whether its MHA and its FFN run."""

    mha: tuple[bool, ...]
    ffn: tuple[bool, ...]

    @cached_property
    def left_out(self) -> Tensor:
        """The same as a mask for the operators: bool `[2 * blocks]`, MHA and FFN of each block, True where left out."""
        return ~torch.tensor([runs for pair in zip(self.mha, self.ffn, strict=True) for runs in pair], dtype=torch.bool)


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


def device_mask(decoder: Decoder, skip: Skip) -> Tensor | None:
    """`skip` as one flag for each half of `decoder`, bool `[2 * blocks]` in its order, when it is a device mask: a bool
    tensor `[original blocks, 2]`, column 0 for MHA halves and 1 for FFN halves, True where left out. Else None.

    Its values are not read here, so nothing waits for a GPU. InputError for another shape.
    """
    if not (isinstance(skip, Tensor) and skip.dtype == torch.bool):
        return None
    if skip.shape != (decoder.original_blocks, 2):
        raise InputError(
            f"skip: a mask of shape {list(skip.shape)} given; [{decoder.original_blocks}, 2], MHA and FFN of a block,"
            " is accepted"
        )
    left = torch.tensor([block.index for block in decoder.blocks], device=skip.device)
    return skip[left].flatten().to(decoder.device)


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
        if not is_whole(value):
            raise InputError(f"skip: {value!r} is not a block index; whole numbers are accepted")
    return frozenset(value.__index__() for value in values)
