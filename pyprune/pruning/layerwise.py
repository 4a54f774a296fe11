"""Calibration one block at a time: what goes into o and down, with memory bounded by the residual stream."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyprune import ops
from pyprune.models.decoder import Block, Decoder
from pyprune.runtime import sequence

CHUNK_FLOATS = 1 << 24
"""Floats that a chunk of samples may hold in its widest activation: 64 MiB in float32."""


class Layerwise:
    """The residual stream of all calibration samples, before one block and then the next.

    calibration: `[samples, seq_len]` token ids. The states of all samples are held (`samples * seq_len * hidden`
    floats); everything wider is made in chunks of samples. `zeros`: states of zero that go along behind the samples.
    """

    def __init__(self, decoder: Decoder, calibration: Tensor, zeros: int = 0) -> None:
        length = calibration.shape[1]
        self._cos, self._sin = decoder.rope.tables(length, prompt=length)
        self._eps, self._chunk = decoder.eps, chunk_of(decoder, length)
        embedded = [sequence.embed(decoder, part) for part in calibration.split(self._chunk)]
        self._x = torch.cat([*embedded, embedded[0].new_zeros(zeros, length, decoder.hidden_size)])

    def inputs(self, block: Block, forward: bool = False) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """For each sample the inputs of o `[seq_len, heads*head_dim]` and of down `[seq_len, width]` in this block,
        None for a sublayer that it lacks. `forward`: the states then stand behind the block, as it is."""
        mha, ffn = block.mha, block.ffn
        for x in self._x.split(self._chunk):
            context = activation = None
            after = x
            if mha is not None:
                context = sequence.attention_context(mha, x, self._cos, self._sin, self._eps)
                after = ops.linear_residual(context, mha.o.weight, mha.o.bias, x)
            if ffn is not None:
                activation = sequence.ffn_activation(ffn, after, self._eps)
                if forward:
                    after = ops.linear_residual(activation, ffn.down.weight, ffn.down.bias, after)
            for sample in range(len(x)):
                yield None if context is None else context[sample], None if activation is None else activation[sample]
            if forward:
                x.copy_(after)  # in place: the chunks are views

    def advance(self, block: Block) -> None:
        """Take the states through a block, pruned or not."""
        for x in self._x.split(self._chunk):
            x.copy_(sequence.run_block(block, x, self._cos, self._sin, self._eps))


def chunk_of(decoder: Decoder, length: int) -> int:
    """Samples whose widest activation (FFN, or the attention matrix of all heads) stays within CHUNK_FLOATS."""
    widths = [block.ffn.width for block in decoder.blocks if block.ffn is not None]
    heads = [b.mha.heads * max(b.mha.head_dim, length) for b in decoder.blocks if b.mha is not None]
    return max(1, CHUNK_FLOATS // (length * max(widths + heads)))
