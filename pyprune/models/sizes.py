"""The sizes of a decoder and of its blocks, as configurations state them and as reports show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyprune.errors import InputError
from pyprune.models.blocks import MHA, Block, Linear
from pyprune.models.protocol import DecoderLike


@dataclass(frozen=True)
class BlockSizes:
    """Everything that a configuration says about a block; two blocks are alike when these are equal.

    `heads` (and `kv_heads`) is 0 where there is no attention, `width` where there is no FFN.
    """

    heads: int
    kv_heads: int
    head_dim: int
    width: int
    attention_bias: str
    """Which of q, k, v, o have a bias."""
    ffn_bias: str
    """Which of gate, up, down have a bias."""
    qk_norm: bool

    def extras(self) -> str:
        """What a block has beside its weights, in words: "biases on q k v, no q/k-norm"."""
        biases = " ".join(self.biases())
        return f"{f'biases on {biases}' if biases else 'no biases'}, {'' if self.qk_norm else 'no '}q/k-norm"

    def biases(self) -> list[str]:
        """The projections that have a bias, of q, k, v, o, gate, up, down."""
        return [*self.attention_bias.split(), *self.ffn_bias.split()]

    @classmethod
    def of(cls, block: Block) -> BlockSizes:
        """The sizes of a block."""
        mha, ffn = block.mha, block.ffn
        return cls(
            heads=0 if mha is None else mha.heads,
            kv_heads=0 if mha is None else mha.kv_heads,
            head_dim=0 if mha is None else mha.head_dim,
            width=0 if ffn is None else ffn.width,
            attention_bias="" if mha is None else _biased(q=mha.q, k=mha.k, v=mha.v, o=mha.o),
            ffn_bias="" if ffn is None else _biased(gate=ffn.gate, up=ffn.up, down=ffn.down),
            qk_norm=mha is not None and mha.q_norm is not None,
        )


def _biased(**projections: Linear) -> str:
    return " ".join(name for name, linear in projections.items() if linear.bias is not None)


def uniform_sizes(decoder: DecoderLike) -> BlockSizes | None:
    """The sizes that all blocks share, None for a decoder without blocks.

    InputError naming the first block (by its original index) that lacks a sublayer or differs from the first one.
    """
    first: BlockSizes | None = None
    for block in decoder.blocks:
        for sublayer, title in ((block.mha, "attention"), (block.ffn, "FFN")):
            if sublayer is None:
                raise InputError(f"{decoder.name}: not uniform: block {block.index} has no {title}")
        sizes = BlockSizes.of(block)
        first = first or sizes
        for name, value in vars(sizes).items():
            if value != getattr(first, name):
                raise InputError(
                    f"{decoder.name}: not uniform: block {block.index} has {name} {value or 'none'},"
                    f" block {decoder.blocks[0].index} has {getattr(first, name) or 'none'}"
                )
    return first


def attention_in_cache(blocks: Sequence[Block]) -> list[MHA | None]:
    """The attention whose keys and values each entry of transformers' cache, one a block, is for.

    A block without attention lends its entry to the next that has it, for the first entry must hold something:
    transformers asks it for the length. Behind the last attention it is that one, though nothing comes there.
    """
    entries: list[MHA | None] = []
    for place in range(len(blocks)):
        following = (block.mha for block in blocks[place:] if block.mha is not None)
        entries.append(next(following, entries[-1] if entries else None))
    return entries


def windows_of(blocks: Sequence[Block]) -> list[int]:
    """The attention window of each entry of transformers' cache, which is that of its block where the block attends."""
    return [0 if mha is None else mha.window for mha in attention_in_cache(blocks)]


def describe_sizes(decoder: DecoderLike, original_parameters: int) -> dict[str, Any]:
    """A decoder's sizes as JSON data, for reports; sizes that differ between blocks are given as "least-greatest".

    `original_parameters`: those of the unpruned model, of which `removed_share` is a share. Bytes per token as
    `Decoder.bytes_per_token`, of the KV cache as `kv_bytes_per_position`; heads and widths of the sublayers present,
    "none" where there is none.
    """
    attention = [block.mha for block in decoder.blocks if block.mha is not None]
    parameters = decoder.parameters()
    return {
        "parameters": parameters,
        "removed_share": 1 - parameters / original_parameters,
        "blocks": len(decoder.blocks),
        "ffn_width": _range([block.ffn.width for block in decoder.blocks if block.ffn is not None]),
        "heads": _range([mha.heads for mha in attention]),
        "kv_heads": _range([mha.kv_heads for mha in attention]),
        "bytes_per_token": decoder.bytes_per_token(),
        "kv_bytes_per_position": kv_bytes_per_position(decoder),
    }


def kv_bytes_per_position(decoder: DecoderLike) -> int:
    """Bytes of KV cache that one position of one sequence takes over all blocks, in the decoder's dtype."""
    attention = [block.mha for block in decoder.blocks if block.mha is not None]
    return sum(2 * mha.kv_heads * mha.head_dim for mha in attention) * decoder.dtype.itemsize


def _range(values: Sequence[int]) -> int | str:
    if not values:
        return "none"
    return values[0] if len(set(values)) == 1 else f"{min(values)}-{max(values)}"
