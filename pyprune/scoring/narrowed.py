"""Replacements that only a `Decoder` can run: its sublayers as a pruning narrows them, and other MHAs and FFNs.

A narrowed sublayer is made when its block comes, and let go behind it: a library of many widths takes no memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

from pyprune.errors import InputError
from pyprune.models.blocks import FFN, MHA, Block
from pyprune.models.decoder import Decoder
from pyprune.models.original_sizes import OriginalSizes
from pyprune.models.pruning import Pruning, recorded
from pyprune.pruning.apply import pruned_block
from pyprune.scoring.cost import ffn_cost, mha_cost
from pyprune.scoring.layered_decoder import DecoderBlock
from pyprune.scoring.layered_model import BlockPass, RunSublayer
from pyprune.scoring.replacements import tensors_digest

KINDS = ("mha", "ffn")


@dataclass(frozen=True, eq=False)
class NarrowedSublayer:
    """A block's "mha" or "ffn" as `pruning`, which narrows nothing else, leaves it. `share`: of its width that stays;
    `full`: the sublayer's sizes before."""

    decoder: Decoder
    kind: str
    pruning: Pruning
    share: float
    full: MHA | FFN

    def on(self, block: BlockPass) -> RunSublayer:
        on_decoder = cast(DecoderBlock, block)
        return run_of(getattr(pruned_block(self.decoder, on_decoder.block, self.pruning), self.kind), on_decoder)

    def multiplications(self, tokens: int) -> int | None:
        return int(self.share * sublayer_cost(self.full, tokens))

    def held_bytes(self) -> int:
        return narrowing_bytes(self.full)

    def digest(self) -> str | None:
        return hashlib.sha256(json.dumps(self.pruning.to_dict(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class OtherSublayer:
    """An MHA or an FFN as data, run by the same operators as the model's own."""

    value: MHA | FFN

    def on(self, block: BlockPass) -> RunSublayer:
        return run_of(self.value, cast(DecoderBlock, block))

    def multiplications(self, tokens: int) -> int | None:
        return sublayer_cost(self.value, tokens)

    def held_bytes(self) -> int:
        return 0

    def digest(self) -> str | None:
        return tensors_digest(type(self.value).__name__, self.value.tensors())


def narrowing_bytes(sublayer: MHA | FFN) -> int:
    """Bytes that the weights of a narrowed sublayer take at most while they are made: no more than its own, one matrix
    twice."""
    sizes = [tensor.numel() * tensor.element_size() for _, tensor in sublayer.tensors()]
    return sum(sizes) + max(sizes)


def run_of(sublayer: MHA | FFN, block: DecoderBlock) -> RunSublayer:
    """How a sublayer runs in a decoder's block."""
    return block.samples.mha(sublayer) if isinstance(sublayer, MHA) else block.samples.ffn(sublayer)


def sublayer_cost(sublayer: MHA | FFN, tokens: int) -> int:
    """Multiplications of one token in samples of `tokens` tokens."""
    return mha_cost(sublayer, tokens) if isinstance(sublayer, MHA) else ffn_cost(sublayer)


def pruned_sublayers(decoder: Decoder, pruning: Pruning) -> Iterator[tuple[int, str, NarrowedSublayer | None]]:
    """What a checked pruning does to the sublayers that a decoder has: the block's original index, "mha" or "ffn", and
    how that is narrowed; None where it goes. Padding, which changes no value, is left out, and so is what is gone
    already."""
    before, sizes = recorded(decoder), OriginalSizes.of(decoder)
    pruning = replace(pruning, pad_to=None, model="", made_by="")
    for block in decoder.sizes().blocks:
        for kind in KINDS:
            sublayer: MHA | FFN | None = getattr(block, kind)
            if sublayer is None:
                continue
            if block.index in pruning.blocks or block.index in getattr(pruning, kind):
                yield block.index, kind, None
            elif (own := _only(pruning, block, kind)) and _goes_beyond(own, before, block.index):
                share = _share_kept(before.joined(own), before, sizes, block.index, kind)
                yield block.index, kind, NarrowedSublayer(decoder, kind, own, share, sublayer)


def check_sublayer(value: MHA | FFN, decoder: Decoder, name: str) -> OtherSublayer:
    """The replacement that an MHA or FFN is; InputError where its sizes do not fit the decoder."""
    hidden = decoder.hidden_size
    if isinstance(value, FFN):
        shapes = {"gate": (value.width, hidden), "up": (value.width, hidden), "down": (hidden, value.width)}
    else:
        q, kv = value.heads * value.head_dim, value.kv_heads * value.head_dim
        shapes = {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}
        rotated = 2 * decoder.rope.tables(1)[0].shape[-1]
        if value.head_dim != rotated:
            raise InputError(f"{name}: heads of {value.head_dim} given; {rotated}, as {decoder.name} has, are expected")
        if value.kv_heads < 1 or value.heads % value.kv_heads:
            raise InputError(f"{name}: {value.heads} heads over {value.kv_heads} KV heads; a multiple is expected")
    if tuple(value.norm.shape) != (hidden,):
        raise InputError(f"{name}: norm {list(value.norm.shape)} given; [{hidden}] is expected")
    for part, shape in shapes.items():
        weight = getattr(value, part).weight
        if tuple(weight.shape) != shape:
            raise InputError(f"{name}: {part} {list(weight.shape)} given; {list(shape)} is expected")
    if value.norm.device != decoder.device:
        raise InputError(f"{name}: weights on {value.norm.device}; on {decoder.device}, as the model's, are expected")
    return OtherSublayer(value)


def _only(pruning: Pruning, block: Block, kind: str) -> Pruning:
    """What the pruning narrows of one sublayer."""
    index, blocks = block.index, pruning.compensation.blocks()
    others = [other for other in blocks if other != index]
    if kind == "mha":
        return Pruning(
            kv_groups={index: pruning.kv_groups.get(index, ())},
            heads={index: pruning.heads.get(index, ())},
            compensation=pruning.compensation.without(others, blocks),
        )
    return Pruning(
        neurons={index: pruning.neurons.get(index, ())}, compensation=pruning.compensation.without(blocks, others)
    )


def _goes_beyond(pruning: Pruning, before: Pruning, index: int) -> bool:
    """Whether a pruning of one sublayer of a block takes or adds what is not gone or added already."""
    removed = any(
        set(getattr(pruning, name).get(index, ())) - set(getattr(before, name).get(index, ()))
        for name in ("kv_groups", "heads", "neurons")
    )
    return removed or bool(pruning.compensation.beyond(before.compensation))


def _share_kept(after: Pruning, before: Pruning, sizes: OriginalSizes, index: int, kind: str) -> float:
    """The share of a sublayer's present heads or neurons that stay."""
    if kind == "ffn":
        stay, present = (sizes.width - len(pruning.neurons.get(index, ())) for pruning in (after, before))
    else:
        stay, present = (sum(map(len, pruning.heads_by_group(index, sizes).values())) for pruning in (after, before))
    return stay / max(1, present)
