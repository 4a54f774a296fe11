"""What a decode step reads and starts, counted from the model's sizes and the kernels' own tables."""

from __future__ import annotations

import torch

from pyprune.models.decoder import Block, Decoder
from pyprune.triton_kernels.configs import SKINNY_ROWS


def step_bytes(decoder: Decoder, batch: int, position: int, left_out: int = 0) -> int:
    """Bytes of weights and caches that a decode step reads, `left_out` of its blocks not called."""
    total = decoder.bytes_per_token() - left_out * block_bytes(decoder.blocks[0])
    rows = sum(2 * b.mha.kv_heads * b.mha.head_dim for b in decoder.blocks[left_out:] if b.mha is not None)
    return total + batch * (position + 1) * rows * decoder.dtype.itemsize


def block_bytes(block: Block) -> int:
    """Bytes of a block's weights."""
    return sum(tensor.numel() * tensor.element_size() for _, tensor in block.tensors())


def step_launches(decoder: Decoder, batch: int, cache: int, capability: int) -> int:
    """Kernels that a decode step starts: embedding and the host's copies are not counted."""
    head = _products(decoder.vocab_size, decoder.hidden_size, batch, capability, pair=False)
    return head + sum(block_launches(decoder, block, batch, cache, capability) for block in decoder.blocks)


def block_launches(decoder: Decoder, block: Block, batch: int, cache: int, capability: int) -> int:
    """Kernels of one block: products with a second kernel where K is split, attention with one where the cache is."""
    from pyprune.triton_kernels import configs

    hidden, launches = decoder.hidden_size, 0
    if block.mha is not None:
        mha = block.mha
        arch = configs.nearest(capability)
        tile = configs.skinny_tile(arch, batch, decoder.dtype, pair=True)
        columns = min(tile.block_n, max(mha.head_dim // 2, 1))
        tiles = (mha.heads + 2 * mha.kv_heads) * -(-(mha.head_dim // 2) // columns)
        appended = configs.splits_for(arch, tiles, hidden, tile)[0] > 1 or mha.q_norm is not None
        launches += 1 + (appended and batch > configs.GEMV_ROWS)  # the CUDA library never splits K
        launches += 1 + (cache > arch.kv_split)
        launches += _products(hidden, mha.heads * mha.head_dim, batch, capability, pair=False)
    if block.ffn is not None:
        width = block.ffn.width
        launches += _products(width, hidden, batch, capability, pair=True)
        launches += _products(hidden, width, batch, capability, pair=False)
    return launches


def _products(out: int, inner: int, rows: int, capability: int, pair: bool) -> int:
    from pyprune.triton_kernels import configs

    if rows <= configs.GEMV_ROWS:  # the CUDA library's: one kernel
        return 1
    arch = configs.nearest(capability)
    tile = configs.skinny_tile(arch, rows, torch.bfloat16, pair)
    return 1 + (configs.splits_for(arch, -(-out // tile.block_n), inner, tile)[0] > 1)


def prompt_launches(decoder: Decoder, batch: int, tokens: int) -> int:
    """Kernels of a prompt of `tokens` tokens: skinny ones as in decoding; more as the sequence path starts them."""
    rows = batch * tokens
    if rows <= SKINNY_ROWS:
        return step_launches(decoder, max(rows, 3), tokens, 90)
    return 14 * len(decoder.blocks) + 2
