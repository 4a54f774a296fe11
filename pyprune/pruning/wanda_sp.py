"""Wanda-sp: weight magnitude times input norm, summed over structures (a width baseline of Shortened LLaMA).

A channel j of the input x of the o or down projection W scores

    s_j = mean_i |W_ij| * ||x_j||_2,

the norm over all calibration tokens; a KV group scores the sum of its heads' channels. Each layer keeps the same
number, and its pruned output is what the next layer's norms are taken from.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyprune.models.decoder import Block, Decoder, Linear
from pyprune.pruning.apply import narrow_ffn, narrow_mha
from pyprune.runtime import sequence

Kept = tuple[Block, list[int], list[int]]
"""A block, and the places of the KV groups and of the neurons that stay, ascending."""

CHUNK_FLOATS = 1 << 24
"""Floats that a chunk of samples may hold in its widest activation: 64 MiB in float32."""


def select(decoder: Decoder, calibration: Tensor, kv_groups: int, width: int) -> Iterator[Kept]:
    """For each block in turn, what of it stays.

    `calibration [samples, seq_len]` token ids; `kv_groups` and `width`: how many stay in every block. Activations are
    held for all samples (`samples * seq_len * hidden` floats); everything wider is made in chunks of samples.
    """
    length = calibration.shape[1]
    cos, sin = decoder.rope.tables(length, prompt=length)
    eps = decoder.eps
    x = torch.cat([sequence.embed(decoder, part) for part in calibration.split(_chunk(decoder, length))])
    for block in decoder.blocks:
        mha, ffn = block.mha, block.ffn
        assert mha is not None  # width asks for blocks with both halves
        assert ffn is not None
        parts = x.split(_chunk(decoder, length))
        # Both norms belong to the unpruned block, as in FLAP's prune_wanda_sp: one forward gathers the inputs of o and
        # of down, then both halves are pruned, and only the next block sees the pruned output.
        context, activation = _Norm(), _Norm()
        for part in parts:
            context.add(sequence.attention_context(mha, part, cos, sin, eps))
            activation.add(sequence.ffn_activation(ffn, sequence.add_mha(mha, part, cos, sin, eps), eps))
        groups = _highest(channel_scores(mha.o, context.value()).view(mha.kv_heads, -1).sum(1), kv_groups)
        neurons = _highest(channel_scores(ffn.down, activation.value()), width)
        pruned = Block(block.index, narrow_mha(mha, groups), narrow_ffn(ffn, neurons))
        for part in parts:
            # In place: the chunks are views of x.
            part.copy_(sequence.run_block(pruned, part, cos, sin, eps))
        yield block, groups, neurons


def channel_scores(linear: Linear, norms: Tensor) -> Tensor:
    """`mean_i |W_ij| * ||x_j||_2` for each input channel: float64 `[in_features]`."""
    magnitude = linear.weight.detach().abs().mean(dim=0, dtype=torch.float64)
    return magnitude.to(norms.device) * norms


class _Norm:
    """The l2 norm of each channel over all tokens seen, accumulated in float64."""

    def __init__(self) -> None:
        self.squares: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        # One sample at a time goes to float64, so that a chunk is never held twice.
        for sample in x:
            self.squares = self.squares + sample.double().square().sum(0)

    def value(self) -> Tensor:
        return torch.as_tensor(self.squares).sqrt()


def _highest(scores: Tensor, count: int) -> list[int]:
    """Places of the `count` highest scores, ascending; of equal scores the lower place goes first, as everywhere."""
    ranked = torch.sort(scores, stable=True).indices
    return sorted(ranked[len(scores) - count :].tolist())


def _chunk(decoder: Decoder, length: int) -> int:
    """Samples whose widest activation (FFN, or the attention matrix of all heads) stays within CHUNK_FLOATS."""
    sizes = ((block.mha, block.ffn) for block in decoder.blocks)
    widest = max(max(f.width, m.heads * max(m.head_dim, length)) for m, f in sizes if m is not None and f is not None)
    return max(1, CHUNK_FLOATS // (length * widest))
