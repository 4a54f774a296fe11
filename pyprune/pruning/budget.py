"""Parameter arithmetic: the units a ratio removes, and the width model of the same size (Shortened LLaMA, Table 1).

A ratio is the share of *all* parameters removed, the embedding included and a tied head counted once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pyprune.errors import InputError
from pyprune.models.decoder import Block, Decoder, Linear
from pyprune.pruning.amount import check_ratio

TOLERANCE = 0.005
"""Largest relative distance of a width model's parameters from its target."""


@dataclass(frozen=True)
class UniformSizes:
    """Parameter counts of a model whose blocks are all alike; no tensors, so a 7B is as cheap as a toy.

    `outside`: embedding, final norm and head; a block holds `fixed` (norms and biases that no narrowing touches), then
    `kv_groups` times `per_group` (rows of q, k, v and columns of o) and `width` times `per_neuron`.
    """

    blocks: int
    kv_groups: int
    width: int
    outside: int
    fixed: int
    per_group: int
    per_neuron: int

    @classmethod
    def of(cls, decoder: Decoder) -> UniformSizes:
        """The sizes of `decoder`; InputError when its blocks differ or lack a half: no one width then."""
        blocks = [_block_sizes(block, decoder.name) for block in decoder.blocks]
        if any(block != blocks[0] for block in blocks):
            raise InputError(f"{decoder.name}: blocks of different sizes; width needs blocks that are all alike")
        kv_groups, width, fixed, per_group, per_neuron = blocks[0]
        inside = sum(t.numel() for block in decoder.blocks for _, t in block.tensors())
        outside = decoder.parameters() - inside
        return cls(len(blocks), kv_groups, width, outside, fixed, per_group, per_neuron)

    @classmethod
    def llama(
        cls,
        *,
        blocks: int,
        hidden: int,
        heads: int,
        kv_groups: int,
        head_dim: int,
        width: int,
        vocab: int,
        tied: bool = False,
    ) -> UniformSizes:
        """The sizes of a bias-free Llama."""
        per_group = head_dim * hidden * (2 * (heads // kv_groups) + 2)
        outside = vocab * hidden * (1 if tied else 2) + hidden
        return cls(blocks, kv_groups, width, outside, 2 * hidden, per_group, 3 * hidden)

    @property
    def per_block(self) -> int:
        return self.fixed + self.kv_groups * self.per_group + self.width * self.per_neuron

    @property
    def parameters(self) -> int:
        return self.outside + self.blocks * self.per_block

    def narrowed(self, kv_groups: int, width: int) -> int:
        """Parameters with `kv_groups` and `width` in every block."""
        return self.outside + self.blocks * (self.fixed + kv_groups * self.per_group + width * self.per_neuron)

    def without(self, blocks: int) -> int:
        """Parameters with `blocks` blocks fewer."""
        return self.parameters - blocks * self.per_block


def unit_parameters(decoder: Decoder, unit: str) -> dict[int, int]:
    """Block index -> parameters of its "block", "mha" or "ffn", where there is one. InputError for other units."""
    if unit not in ("block", "mha", "ffn"):
        raise InputError(f"unit {unit!r}: block, mha or ffn is expected")
    parts = ((block.index, block if unit == "block" else getattr(block, unit)) for block in decoder.blocks)
    return {index: sum(t.numel() for _, t in part.tensors()) for index, part in parts if part is not None}


def count_for_ratio(ratio: float, parameters: int, unit_sizes: Sequence[int]) -> int:
    """How many units, taken in the order given, come nearest to `ratio` of `parameters`; of two as near, the fewer.

    InputError when there are none or that is none, or when all of them together fall short of the ratio by more than
    half a unit.
    """
    target = check_ratio(ratio) * parameters
    if not unit_sizes:
        raise InputError(f"ratio {ratio:g}: no unit can be removed; at least one block stays")
    removed, best, distance = 0, 0, target
    for count, size in enumerate(unit_sizes, start=1):
        removed += size
        if abs(removed - target) < distance:
            best, distance = count, abs(removed - target)
    if best == 0:
        first = "the only removable unit" if len(unit_sizes) == 1 else "one unit"
        least = unit_sizes[0] / parameters
        raise InputError(f"ratio {ratio:g}: nearest to no unit at all; {first} is {least:.3%} of the parameters")
    if best == len(unit_sizes) and target - removed > unit_sizes[-1] / 2:
        every = "the only removable unit is" if best == 1 else f"all {best} removable units are"
        raise InputError(f"ratio {ratio:g}: {every} only {removed / parameters:.1%} of the parameters")
    return best


def depth_count(decoder: Decoder, ratio: float, unit: str = "block") -> int:
    """The number of units whose removal comes nearest to `ratio` of all parameters of `decoder`.

    Units of a ragged model are counted in block order; `depth` counts them in the order of removal. InputError for a
    ratio outside (0, 1), one nearest to none, or one that would take every block.
    """
    sizes = list(unit_parameters(decoder, unit).values())
    count = count_for_ratio(ratio, decoder.parameters(), sizes)
    if unit == "block" and count == len(sizes):
        blocks = "the only block" if count == 1 else f"all {count} blocks"
        raise InputError(f"ratio {ratio:g}: would remove {blocks}; at least one must stay")
    return count


def depth_row(sizes: UniformSizes, ratio: float) -> int:
    """Parameters of the depth-pruned model for `ratio`: what a width model of that ratio is matched to."""
    return sizes.without(count_for_ratio(ratio, sizes.parameters, [sizes.per_block] * (sizes.blocks - 1)))


def width_for(sizes: UniformSizes, target_parameters: int, *, align: int | None = None) -> tuple[int, int]:
    """`(kv_groups, ffn_width)` to keep in every block so that the model has `target_parameters`.

    The KV groups kept are the nearest whole number (at least 1) to the share of blocks that a depth-pruned model of
    that size keeps; the FFN width then comes nearest to the target, in multiples of `align` where given. An exact
    width is off by at most half a neuron per block, which only a very small model feels.
    InputError when no width of 1 up to the present one does, or when the nearest one is off by more than 0.5 %.
    """
    for name, value in (("target_parameters", target_parameters), ("align", align)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{name} {value!r}: a whole number from 1 is expected")
    if target_parameters >= sizes.parameters:
        raise InputError(
            f"target of {target_parameters} parameters: less than the model's {sizes.parameters} is expected"
        )
    dropped = _nearest((sizes.parameters - target_parameters) / sizes.per_block)
    share = (sizes.blocks - dropped) / sizes.blocks
    kv_groups = max(1, _nearest(sizes.kv_groups * share))
    step = align or 1
    left = target_parameters - sizes.narrowed(kv_groups, 0)
    width = step * _nearest(left / (sizes.blocks * sizes.per_neuron * step))
    if align is not None and 0 <= left <= sizes.blocks * sizes.per_neuron * sizes.width:
        # The nearest multiple may lie outside what there is although the exact width does not.
        width = min(max(width, step), sizes.width // step * step)
    if not 1 <= width <= sizes.width:
        raise InputError(
            f"target of {target_parameters} parameters: with {kv_groups} of {sizes.kv_groups} KV groups the FFN width"
            f" would be {width}; 1 to {sizes.width} is accepted"
        )
    actual = sizes.narrowed(kv_groups, width)
    distance = abs(actual - target_parameters) / target_parameters
    if distance > TOLERANCE:
        asked = f"target of {target_parameters} parameters" if align is None else f"align {align}"
        raise InputError(
            f"{asked}: the nearest FFN width {width} gives {actual} parameters, {distance:.2%} from the target of"
            f" {target_parameters}; within {TOLERANCE:.1%} is expected"
        )
    return kv_groups, width


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)


def _block_sizes(block: Block, name: str) -> tuple[int, int, int, int, int]:
    mha, ffn = block.mha, block.ffn
    if mha is None or ffn is None:
        raise InputError(f"{name}: block {block.index} has no {'mha' if mha is None else 'ffn'}; width needs both")
    column = mha.o.weight.shape[0]
    per_group = mha.head_dim * (mha.group * (_row(mha.q) + column) + _row(mha.k) + _row(mha.v))
    per_neuron = _row(ffn.gate) + _row(ffn.up) + column
    total = sum(t.numel() for _, t in block.tensors())
    fixed = total - mha.kv_heads * per_group - ffn.width * per_neuron
    return mha.kv_heads, ffn.width, fixed, per_group, per_neuron


def _row(linear: Linear) -> int:
    """Parameters of one output row, its bias included."""
    return linear.weight.shape[1] + (linear.bias is not None)
