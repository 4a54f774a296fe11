"""A `Decoder` as the layer-major pass takes it: sublayers run by pyprune's operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from pyprune import ops
from pyprune.models.decoder import FFN, MHA, Block, Decoder
from pyprune.ops.formulas import rms_norm
from pyprune.ops.weight_formats import plain
from pyprune.runtime.sequence import activation_dtype, add_ffn, add_mha, embed
from pyprune.scoring.cost import Costs, ffn_cost, mha_cost
from pyprune.scoring.layered_model import RunSublayer
from pyprune.scoring.removals import present_sublayers

EMBEDDED = 16
"""Samples whose embeddings are made together: beside the states of all there is no second copy."""


@dataclass(frozen=True)
class LayeredDecoder:
    """A decoder behind `LayeredModel`, which explains its members."""

    decoder: Decoder

    sublayers_per_block = 2

    @property
    def name(self) -> str:
        return self.decoder.name

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.dtype

    @property
    def state_dtype(self) -> torch.dtype:
        return activation_dtype(self.decoder)

    @property
    def hidden_size(self) -> int:
        return self.decoder.hidden_size

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    @property
    def block_count(self) -> int:
        return len(self.decoder.blocks)

    @cached_property
    def block_indices(self) -> tuple[int, ...]:
        return tuple(block.index for block in self.decoder.sizes().blocks)

    @cached_property
    def present(self) -> frozenset[int]:
        return present_sublayers(self.decoder)

    @property
    def streamed(self) -> bool:
        return self.decoder.streamed

    def costs(self, tokens: int) -> Costs:
        sublayers = {}
        for position, block in enumerate(self.decoder.sizes().blocks):
            if block.mha is not None:
                sublayers[2 * position] = mha_cost(block.mha, tokens)
            if block.ffn is not None:
                sublayers[2 * position + 1] = ffn_cost(block.ffn)
        return Costs(sublayers, self.decoder.head.weight.numel())

    def row_bytes(self, tokens: int, padded: bool) -> int:
        """The widest moment of a row: gate, up and their product, or all that attention holds, in float32."""
        hidden, widest = self.hidden_size, 0
        blocks = self.decoder.sizes().blocks
        for block in blocks:
            if block.ffn is not None:
                # With bfloat16 instructions one of the two products also stands in bfloat16 while it is widened.
                widest = max(widest, 4 * (hidden + 3 * block.ffn.width) + 2 * (hidden + block.ffn.width))
            if block.mha is not None:
                heads, kv = (n * block.mha.head_dim for n in (block.mha.heads, block.mha.kv_heads))
                widest = max(widest, 4 * (hidden + 5 * heads + 2 * kv))
        windowed = any(block.mha is not None and block.mha.window for block in blocks)
        return widest + 4 * 2 * hidden + (5 * tokens if padded or windowed else 0)

    def streamed_bytes(self) -> int:
        """The two largest blocks of a streamed decoder."""
        if not self.streamed:
            return 0
        blocks = self.decoder.sizes().blocks
        return sum(sorted(sum(t.numel() * t.element_size() for _, t in block.tensors()) for block in blocks)[-2:])

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return self.decoder.tensors()

    def on(self, input_ids: Tensor, mask: Tensor | None) -> DecoderSamples:
        return DecoderSamples(self.decoder, input_ids, mask)


class DecoderSamples:
    """A decoder on the samples of one pass: `SamplesPass`."""

    def __init__(self, decoder: Decoder, input_ids: Tensor, mask: Tensor | None) -> None:
        tokens = input_ids.shape[1]
        self.decoder, self._ids = decoder, input_ids
        self._mask = None if mask is None else mask.to(decoder.device)
        self._cos, self._sin = decoder.rope.tables(tokens, prompt=tokens)

    def embed(self, into: Tensor) -> None:
        for ids, states in zip(self._ids.split(EMBEDDED), into.split(EMBEDDED), strict=True):
            states.copy_(embed(self.decoder, ids))

    def blocks(self, first: int) -> Iterator[DecoderBlock]:
        blocks = self.decoder.blocks
        # A streamed decoder reads a block from its file when the loop comes to it, and only those of the slice.
        for block in blocks[first:] if first else blocks:
            yield DecoderBlock(self, block)

    def losses(self, x: Tensor, targets: Tensor) -> Tensor:
        norm, eps, head = self.decoder.norm, self.decoder.eps, self.decoder.head
        return ops.linear_cross_entropy(x, head.weight, targets, norm, eps, head.bias)

    def final(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.decoder.norm.to(x.dtype), self.decoder.eps)

    def logits(self, final: Tensor, start: int, stop: int) -> Tensor:
        head = self.decoder.head
        weight = plain(head.weight[start:stop], final.shape[-1]).to(final.dtype)
        bias = None if head.bias is None else head.bias[start:stop].to(final.dtype)
        return F.linear(final, weight, bias).float()

    def mask(self, samples: Sequence[int]) -> Tensor | None:
        return None if self._mask is None else self._mask[list(samples)]

    def mha(self, mha: MHA) -> RunSublayer:
        """x + MHA(RMSNorm(x))."""
        return lambda x, samples: add_mha(mha, x, self._cos, self._sin, self.decoder.eps, self.mask(samples))

    def ffn(self, ffn: FFN) -> RunSublayer:
        """x + FFN(RMSNorm(x))."""
        return lambda x, samples: add_ffn(ffn, x, self.decoder.eps)


@dataclass(frozen=True)
class DecoderBlock:
    """One block of a decoder on the samples of a pass: `BlockPass`."""

    samples: DecoderSamples
    block: Block

    @property
    def index(self) -> int:
        return self.block.index

    def sublayer(self, offset: int) -> RunSublayer | None:
        if offset == 0:
            return None if self.block.mha is None else self.samples.mha(self.block.mha)
        return None if self.block.ffn is None else self.samples.ffn(self.block.ffn)

    def mask(self, samples: Sequence[int]) -> Tensor | None:
        return self.samples.mask(samples)
