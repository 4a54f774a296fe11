"""Which blocks and sublayers a run leaves out, without touching the weights."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from pyprune.checks import is_whole
from pyprune.errors import InputError
from pyprune.models.decoder import Decoder


class HasSkipSets(Protocol):
    """What a `Pruning` offers to the engine: the blocks, MHA sublayers and FFN sublayers it removes."""

    def skip_sets(self) -> tuple[frozenset[int], frozenset[int], frozenset[int]]: ...


Skip = None | Iterable[int] | Mapping[str, Iterable[int]] | HasSkipSets | Tensor
"""Block indices, {"blocks", "mha", "ffn"} or a `Pruning`, known to the host; or a device mask, a bool tensor
`[original blocks, 2]`, column 0 for MHA and 1 for FFN, True where left out."""


@dataclass(frozen=True)
class SkipPlan:
    """`Skip` as the engine runs it: for each block of a decoder, in order, whether its MHA and its FFN are called.

    device_mask: bool `[2 * blocks]`, MHA and FFN of each block, True where left out; the operators read it, so with it
    every sublayer is called. Plans with different masks are equal: they launch the same operators.
    """

    mha: tuple[bool, ...]
    ffn: tuple[bool, ...]
    device_mask: Tensor | None = field(default=None, compare=False)

    @cached_property
    def mask(self) -> Tensor:
        """What is left out, for operators that read it: as `device_mask`, which it is where there is one."""
        if self.device_mask is not None:
            return self.device_mask
        runs = [runs for pair in zip(self.mha, self.ffn, strict=True) for runs in pair]
        return ~torch.tensor(runs, dtype=torch.bool)


def skip_plan(decoder: Decoder, skip: Skip = None) -> SkipPlan:
    """Turn `skip` (in the original model's indices) into a SkipPlan.

    A sublayer that the decoder no longer has is simply left out. A device mask's values are not read here, so nothing
    waits for a GPU. InputError: an index outside the original model, an unknown key, a mask of another shape, a pruning
    that also narrows widths, or nothing left to run.
    """
    if isinstance(skip, Tensor) and skip.dtype == torch.bool:
        return SkipPlan(*_running(decoder), _device_mask(decoder, skip))
    blocks, mha, ffn = _skip_sets(skip)
    count = decoder.original_blocks
    for kind, indices in (("block", blocks), ("MHA of block", mha), ("FFN of block", ffn)):
        for index in sorted(indices):
            if not 0 <= index < count:
                raise InputError(f"skip: {kind} {index} does not exist; 0 to {count - 1} are accepted")
    plan = SkipPlan(*_running(decoder, blocks | mha, blocks | ffn))
    if not any(plan.mha) and not any(plan.ffn):
        raise InputError(f"skip: all {count} blocks are left out; at least one MHA or FFN must run")
    return plan


def _running(
    decoder: Decoder, no_mha: frozenset[int] = frozenset(), no_ffn: frozenset[int] = frozenset()
) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Which MHA and which FFN sublayers there are, but for those of the blocks named."""
    mha = tuple(block.mha is not None and block.index not in no_mha for block in decoder.blocks)
    ffn = tuple(block.ffn is not None and block.index not in no_ffn for block in decoder.blocks)
    return mha, ffn


def _device_mask(decoder: Decoder, mask: Tensor) -> Tensor:
    """A mask `[original blocks, 2]` as one flag for each sublayer of `decoder`, bool `[2 * blocks]`, on its device."""
    if mask.shape != (decoder.original_blocks, 2):
        raise InputError(
            f"skip: a mask of shape {list(mask.shape)} given; [{decoder.original_blocks}, 2], MHA and FFN of a block,"
            " is accepted"
        )
    indices = torch.tensor([block.index for block in decoder.blocks], device=mask.device)
    return mask[indices].flatten().to(decoder.device)


def _skip_sets(skip: Skip) -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
    """The blocks, MHA sublayers and FFN sublayers that `skip` names."""
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
    return frozenset(operator.index(value) for value in values)
