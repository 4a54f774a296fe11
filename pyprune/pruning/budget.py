"""Parameter arithmetic: the units a ratio removes, and the width model of the same size (Shortened LLaMA, Table 1).

A ratio is the share of *all* parameters removed, the embedding included and a tied head counted once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyprune.checks import is_int
from pyprune.errors import InputError
from pyprune.models.decoder import Block, Decoder, Linear
from pyprune.models.load_any import AnyDecoder
from pyprune.models.transformers_decoder import TransformersDecoder
from pyprune.pruning.amount import check_ratio

TOLERANCE = 0.005
"""Largest relative distance of a width model's parameters from its target."""


@dataclass(frozen=True)
class BlockCosts:
    """What the units of one block cost in parameters.

    The block at `index` holds `fixed` (norms and biases that no narrowing touches), `kv_groups` times `per_group` (rows
    of q, k, v and columns of o) and `width` times `per_neuron`. A sublayer that is missing has no units.
    """

    index: int
    kv_groups: int
    width: int
    fixed: int
    per_group: int
    per_neuron: int

    @classmethod
    def of(cls, block: Block) -> BlockCosts:
        mha, ffn = block.mha, block.ffn
        kv_groups = width = per_group = per_neuron = 0
        if mha is not None:
            kv_groups = mha.kv_heads
            column = mha.o.weight.shape[0]
            per_group = mha.head_dim * (mha.group * (_row(mha.q) + column) + _row(mha.k) + _row(mha.v))
        if ffn is not None:
            width = ffn.width
            per_neuron = _row(ffn.gate) + _row(ffn.up) + ffn.down.weight.shape[0]
        total = block.parameters()
        fixed = total - kv_groups * per_group - width * per_neuron
        return cls(block.index, kv_groups, width, fixed, per_group, per_neuron)

    @property
    def groups(self) -> int:
        """Parameters of all KV groups."""
        return self.kv_groups * self.per_group

    @property
    def neurons(self) -> int:
        """Parameters of all neurons."""
        return self.width * self.per_neuron

    @property
    def total(self) -> int:
        return self.fixed + self.groups + self.neurons


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
        """The sizes of `decoder`; InputError when its blocks differ or lack a sublayer: no one width then."""
        for block in decoder.blocks:
            if block.mha is None or block.ffn is None:
                missing = "mha" if block.mha is None else "ffn"
                raise InputError(f"{decoder.name}: block {block.index} has no {missing}; width needs both")
        costs = [BlockCosts.of(block) for block in decoder.blocks]
        if len({replace(block, index=0) for block in costs}) > 1:
            raise InputError(f"{decoder.name}: blocks of different sizes; width needs blocks that are all alike")
        outside = decoder.parameters() - sum(block.total for block in costs)
        first = costs[0]
        return cls(len(costs), first.kv_groups, first.width, outside, first.fixed, first.per_group, first.per_neuron)

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


def unit_parameters(decoder: AnyDecoder, unit: str) -> dict[int, int]:
    """Block index -> parameters of its "block", "mha" or "ffn", where there is one. InputError for other units, and for
    sublayers of a model that has whole layers only."""
    if unit not in ("block", "mha", "ffn"):
        raise InputError(f"unit {unit!r}: block, mha or ffn is expected")
    if isinstance(decoder, TransformersDecoder):
        if unit != "block":
            raise InputError(f"unit {unit!r}: {decoder.name} runs through its own layers; 'block' is accepted")
        return decoder.block_parameters()
    parts = ((block.index, block if unit == "block" else getattr(block, unit)) for block in decoder.blocks)
    return {index: part.parameters() for index, part in parts if part is not None}


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
        share = unit_sizes[0] / parameters
        raise InputError(f"ratio {ratio:g}: nearest to removing no unit; {first} is {share:.3%} of the parameters")
    if best == len(unit_sizes) and target - removed > unit_sizes[-1] / 2:
        all_units = "the only removable unit is" if best == 1 else f"all {best} removable units are"
        raise InputError(f"ratio {ratio:g}: {all_units} only {removed / parameters:.1%} of the parameters")
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
    """`(kv_groups, ffn_width)` to keep in every block so that the model has `target_parameters`: `quotas` where all
    blocks are alike and stay so. Errors as there."""
    block = BlockCosts(0, sizes.kv_groups, sizes.width, sizes.fixed, sizes.per_group, sizes.per_neuron)
    return quotas([block] * sizes.blocks, sizes.parameters, target_parameters, align=align, alike=True)[0]


def quotas(
    costs: Sequence[BlockCosts],
    parameters: int,
    target_parameters: int,
    *,
    align: int | None = None,
    units: str = "both",
    removed_groups: int | None = None,
    alike: bool = False,
) -> list[tuple[int, int]]:
    """`(kv_groups, ffn_width)` to keep in each of these blocks so that a model of `parameters` comes to
    `target_parameters`, every block losing the same share.

    `costs`: the blocks that lose something; the model may have others. The KV groups kept are the nearest whole number
    (at least 1) to the share of blocks that a depth-pruned model of that size keeps, or `removed_groups` fewer than
    there are; the FFN width then comes nearest to the target, in multiples of `align` where given. `units`: "heads" or
    "neurons" leave the others as they are. Where the multiples of `align` (of "heads", the groups) that come nearest
    miss the target by more than 0.5 %, as multiples of 64 do in a small model, some blocks keep one more than others,
    spread evenly over the depth, unless `alike`.
    InputError when no width of 1 up to the present one does, or when the nearest ones are off by more than 0.5 %.
    """
    check_target(target_parameters, parameters, align)
    widths = [block.width for block in costs]
    if units != "both":
        groups = [block.kv_groups for block in costs]
    elif removed_groups is not None:
        groups = [max(min(block.kv_groups, 1), block.kv_groups - removed_groups) for block in costs]
    else:
        groups = group_share(costs, parameters - target_parameters)
    if not sum(block.groups if units == "heads" else block.neurons for block in costs):
        lacking, other = ("attention", "neurons") if units == "heads" else ("FFN", "heads")
        raise InputError(f"units {units!r}: none of these {len(costs)} blocks has {lacking}; {other!r} is accepted")
    untouched = parameters - sum(block.groups + block.neurons for block in costs)
    slack = TOLERANCE * target_parameters
    bounds: list[tuple[int, int]] | None
    if units == "heads":
        budget = target_parameters - untouched - sum(block.neurons for block in costs)
        total = sum(block.groups for block in costs)
        exact = [block.kv_groups * budget / total for block in costs]
        bounds = [(min(block.kv_groups, 1), block.kv_groups) for block in costs]
        groups = _fitted(exact, bounds, [block.per_group for block in costs], budget, slack, spread=not alike)
        selection = f"{_range(groups)} KV groups"
    else:
        kept_groups = sum(n * block.per_group for n, block in zip(groups, costs, strict=True))
        budget = target_parameters - untouched - kept_groups
        step, total = align or 1, sum(block.neurons for block in costs)
        exact = [block.width * budget / (total * step) for block in costs]
        # The nearest multiple may lie beyond the present width although the exact width does not.
        bounded = align is not None and 0 <= budget <= total
        bounds = [(min(block.width // step, 1), block.width // step) for block in costs] if bounded else None
        per_step = [step * block.per_neuron for block in costs]
        spread = align is not None and not alike
        widths = [step * n for n in _fitted(exact, bounds, per_step, budget, slack, spread)]
        for block, n, width in zip(costs, groups, widths, strict=True):
            if block.width and not 1 <= width <= block.width:
                raise InputError(
                    f"target of {target_parameters} parameters: with {n} of {block.kv_groups} KV groups the FFN width"
                    f" would be {width}; 1 to {block.width} is accepted"
                )
        selection = f"FFN width {_range(widths)}"
    sizes = list(zip(groups, widths, strict=True))
    actual = untouched + sum(n * b.per_group + width * b.per_neuron for b, (n, width) in zip(costs, sizes, strict=True))
    require_near(actual, target_parameters, selection, align)
    return sizes


def _fitted(
    exact: Sequence[float],
    bounds: Sequence[tuple[int, int]] | None,
    costs: Sequence[int],
    budget: int,
    slack: float,
    spread: bool,
) -> list[int]:
    """Whole numbers nearest to `exact` and within `bounds`, so that they cost `budget` parameters.

    Where that is missed by more than `slack`, and with `spread`, such that every partial sum is nearest instead.
    """
    for by_sums in (False, True) if spread else (False,):
        counts = _rounded(exact, by_sums)
        if bounds is not None:
            counts = [min(max(count, low), high) for count, (low, high) in zip(counts, bounds, strict=True)]
        if abs(sum(count * cost for count, cost in zip(counts, costs, strict=True)) - budget) <= slack:
            break
    return counts


def _rounded(exact: Sequence[float], by_sums: bool) -> list[int]:
    if not by_sums:
        return [_nearest(value) for value in exact]
    sums = [0, *(_nearest(total) for total in itertools.accumulate(exact))]
    return [after - before for before, after in itertools.pairwise(sums)]


def group_share(costs: Sequence[BlockCosts], excess: int) -> list[int]:
    """KV groups to keep in each of these blocks: the share of them that is kept in depth when blocks go that hold
    about `excess` parameters, at least one where there are any."""
    dropped = _nearest(excess * len(costs) / sum(block.total for block in costs))
    share = (len(costs) - dropped) / len(costs)
    return [min(block.kv_groups, max(1, _nearest(block.kv_groups * share))) for block in costs]


def check_target(target_parameters: int, parameters: int, align: int | None) -> None:
    """Raise InputError unless the target is a whole number from 1 and less than `parameters`, and `align` from 1."""
    for name, value in (("target_parameters", target_parameters), ("align", align)):
        if value is not None and (not is_int(value) or value < 1):
            raise InputError(f"{name} {value!r}: a whole number from 1 is expected")
    if target_parameters >= parameters:
        raise InputError(f"target of {target_parameters} parameters: less than the model's {parameters} is expected")


def require_near(actual: int, target: int, selection: str, align: int | None = None) -> None:
    """Raise InputError, naming the nearest `selection`, when its `actual` parameters lie more than 0.5 % from the
    target."""
    if abs(actual - target) > TOLERANCE * target:
        option = f"target of {target} parameters" if align is None else f"align {align}"
        raise InputError(
            f"{option}: the nearest {selection} gives {actual} parameters, {abs(actual - target) / target:.2%} from the"
            f" target of {target}; within {TOLERANCE:.1%} is expected"
        )


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)


def _row(linear: Linear) -> int:
    """Parameters of one output row, its bias included."""
    return linear.weight.shape[1] + (linear.bias is not None)
