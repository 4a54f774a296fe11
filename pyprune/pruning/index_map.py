"""From the places in a pruned model back to the original's: what distillation and surgery need."""

from __future__ import annotations

from dataclasses import dataclass

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.models.original_sizes import OriginalSizes
from pyprune.models.pruning import Pruning, recorded
from pyprune.pruning.apply import kept


@dataclass(frozen=True)
class KeptBlock:
    """One block that stays: for each place in the pruned model the original index.

    `index`: the block's; `kv_groups` and `heads` (query heads): None where the attention is gone; `neurons`: None where
    the FFN is gone. Zero neurons of a padding come after these and have no original.
    """

    index: int
    kv_groups: tuple[int, ...] | None
    heads: tuple[int, ...] | None
    neurons: tuple[int, ...] | None


def index_map(decoder: Decoder, pruning: Pruning | None = None) -> tuple[KeptBlock, ...]:
    """The blocks of a pruned model in order, each with the original indices of what it kept.

    `decoder`: the original with the `pruning` that is to be applied, or without one a model that is pruned already:
    `index_map(apply(d, p)) == index_map(d, p)`. A student's block at place n is to be taught by the teacher's block
    `index_map(...)[n].index`, its head and neuron at place j by the teacher's `heads[j]` and `neurons[j]`.
    InputError when the pruning does not fit.
    """
    total = recorded(decoder)
    if pruning is not None:
        pruning.check(decoder)
        total = total.joined(pruning)
    sizes = OriginalSizes.of(decoder)
    blocks = []
    for index in kept(sizes.blocks, total.blocks):
        groups = heads = neurons = None
        if index not in total.mha:
            stay = total.heads_by_group(index, sizes)
            groups, heads = tuple(stay), tuple(head for part in stay.values() for head in part)
        if index not in total.ffn:
            neurons = tuple(kept(sizes.width, total.neurons.get(index, ())))
        blocks.append(KeptBlock(index, groups, heads, neurons))
    held = [block.index for block in decoder.blocks if block.index not in total.blocks]
    if held != [block.index for block in blocks]:
        raise InputError(f"{decoder.name}: holds blocks {held}, its pruning leaves {[block.index for block in blocks]}")
    return tuple(blocks)
