"""Reading a decoder from a source of tensors, by its family and its configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyprune.models.blocks import FFN, MHA, Block, Linear
from pyprune.models.decoder import Decoder
from pyprune.models.families.family import Family
from pyprune.models.pages import Pages
from pyprune.models.rope import context_length, rope_from_config
from pyprune.models.sizes import BlockSizes
from pyprune.models.streaming import StreamedBlocks
from pyprune.models.tensors import NoWeights, TensorSource


def read_decoder(
    family: Family, config: dict[str, Any], source: TensorSource, *, name: str, where: str, dtype: torch.dtype,
    device: torch.device, sizes: Sequence[BlockSizes] | None = None, stream: bool = False,
) -> Decoder:  # fmt: skip
    """Read a decoder of `family` from `source`, `config` being checked already.

    `sizes`: those of each block; None for `family.sizes(config)`. stream: blocks are read when they are run, and an
    untied embedding stays in its file. InputError for a tensor that is missing, misshapen or not finite.
    """
    hidden, windows = config["hidden_size"], family.windows(config)
    sizes = family.sizes(config) if sizes is None else sizes

    def take(part: str, *shape: int) -> Tensor:
        return source.take(part, shape, dtype, device)

    def block(index: int) -> Block:
        return read_block(source, index, sizes[index], hidden, windows[index], dtype, device)

    if stream:
        source.pages = Pages(together=False)
    tied = bool(config.get("tie_word_embeddings"))
    # As transformers reads it: a tied model may keep its one table under either name; two tables are tied only if
    # they are equal.
    table = "head.weight" if tied and not source.has("embedding") else "embedding"
    take_table = source.take_mapped if stream and not tied else source.take
    embedding = take_table(table, (config["vocab_size"], hidden), dtype, device)
    head = embedding
    if not tied or source.has("head.weight"):
        head = take("head.weight", config["vocab_size"], hidden)
        if tied and not torch.equal(head, embedding):
            tied = False
            config = {**config, "tie_word_embeddings": False}
        elif tied:
            head = embedding
    if stream:
        blocks: Sequence[Block] = _streamed(block, source, sizes, hidden, windows, dtype)
    else:
        blocks = tuple(block(index) for index in range(len(sizes)))
    rope = rope_from_config(config, where)
    return Decoder(
        name=name,
        config=config,
        embedding=embedding,
        blocks=blocks,
        norm=take("norm", hidden),
        head=Linear(head),
        tied=tied,
        rope=rope.to(device),
        eps=float(config["rms_norm_eps"]),
        max_positions=context_length(config, rope),
    )


def read_block(
    source: TensorSource, index: int, size: BlockSizes, hidden: int, window: int, dtype: torch.dtype,
    device: torch.device,
) -> Block:  # fmt: skip
    """One block of a source, at its place there, with the sublayers that its sizes speak of."""

    def take(part: str, *shape: int) -> Tensor:
        return source.take(f"blocks.{index}.{part}", shape, dtype, device)

    def linear(part: str, out: int, inner: int, biased: bool) -> Linear:
        weight = take(f"{part}.weight", out, inner)
        return Linear(weight, take(f"{part}.bias", out) if biased else None)

    def mha() -> MHA:
        biased, head_dim = size.attention_bias.split(), size.head_dim
        norms = [take(f"mha.{n}", head_dim) if size.qk_norm else None for n in ("q_norm", "k_norm")]
        return MHA(
            norm=take("mha.norm", hidden),
            q=linear("mha.q", size.heads * head_dim, hidden, "q" in biased),
            k=linear("mha.k", size.kv_heads * head_dim, hidden, "k" in biased),
            v=linear("mha.v", size.kv_heads * head_dim, hidden, "v" in biased),
            o=linear("mha.o", hidden, size.heads * head_dim, "o" in biased),
            heads=size.heads,
            kv_heads=size.kv_heads,
            head_dim=head_dim,
            q_norm=norms[0],
            k_norm=norms[1],
            window=window,
        )

    def ffn() -> FFN:
        biased = size.ffn_bias.split()
        return FFN(
            norm=take("ffn.norm", hidden),
            gate=linear("ffn.gate", size.width, hidden, "gate" in biased),
            up=linear("ffn.up", size.width, hidden, "up" in biased),
            down=linear("ffn.down", hidden, size.width, "down" in biased),
        )

    return Block(index, mha() if size.heads else None, ffn() if size.width else None)


def _streamed(
    read: Callable[[int], Block], source: TensorSource, sizes: Sequence[BlockSizes], hidden: int,
    windows: Sequence[int], dtype: torch.dtype,
) -> StreamedBlocks:  # fmt: skip
    """Blocks that `read` reads when they are run; that the source has all of their tensors is seen now."""
    outline = NoWeights(source.name_of)
    meta = torch.device("meta")
    blocks = [read_block(outline, i, size, hidden, windows[i], dtype, meta) for i, size in enumerate(sizes)]
    for part, shape in outline.shapes.items():
        source.require(part, shape)
    return StreamedBlocks(read, blocks)
