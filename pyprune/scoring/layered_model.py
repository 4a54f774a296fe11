"""What the layer-major pass needs of a model: blocks that map states to states, and a head on the last ones.

`pyprune.scoring.layered_decoder` has it for a `Decoder`. States are residual streams `[N, T, hidden]` of N sequences,
each of them one of the samples of a pass: the same sample may be there many times, once for each candidate. A sequence
comes out the same whatever others run with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pyprune.scoring.cost import Costs

RunSublayer = Callable[[Tensor, Sequence[int]], Tensor]
"""From states `[N, T, hidden]`, and which sample of the pass each sequence is, to the states behind. The states that
are given are left as they are."""


class BlockPass(Protocol):
    """One block on the samples of a pass, its weights in memory."""

    @property
    def index(self) -> int:
        """The block's index in the original model."""

    def sublayer(self, offset: int) -> RunSublayer | None:
        """How its attention (offset 0) or its FFN (1) runs, the residual stream included; None where it has none. Where
        whole layers are the smallest units, 0 is the layer and there is no 1."""

    def mask(self, samples: Sequence[int]) -> Tensor | None:
        """Bool `[N, T]`, False where a token of these samples is padding; None where none is."""


class SamplesPass(Protocol):
    """The model on the fixed samples `[S, T]` of one pass: positions, masks and the like are made once."""

    def embed(self, into: Tensor) -> None:
        """Write the states of all samples before the first block, `[S, T, hidden]` in the model's `state_dtype`."""

    def blocks(self, first: int) -> Iterator[BlockPass]:
        """The blocks from the `first` on, each in memory as long as the caller holds it."""

    def losses(self, x: Tensor, targets: Tensor) -> Tensor:
        """-log p(target) of last states `[N, T', hidden]` through final norm and head: float32 `[N, T']`, 0 where the
        target is -100. Logits never exist as a whole."""

    def final(self, x: Tensor) -> Tensor:
        """Last states behind the final norm: what the head reads, `[N, T, hidden]`."""

    def logits(self, final: Tensor, start: int, stop: int) -> Tensor:
        """The logits of the vocabulary's ids start .. stop-1 for states behind the final norm: float32
        `[N, T, stop-start]`, with the model's own scaling and soft cap."""


class LayeredModel(Protocol):
    """A decoder as a list of blocks of one or two sublayers; see `pyprune.scoring.edits` for their indices."""

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""

    @property
    def state_dtype(self) -> torch.dtype:
        """Of the residual stream."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def block_count(self) -> int: ...
    @property
    def block_indices(self) -> Sequence[int]:
        """Each block's index in the original, unpruned model, ascending."""

    @property
    def sublayers_per_block(self) -> int:
        """2, or 1 where whole layers are the smallest units."""

    @property
    def present(self) -> frozenset[int]:
        """The indices of all sublayers that there are."""

    @property
    def streamed(self) -> bool:
        """Whether a block's weights are read from a file whenever it runs."""

    def costs(self, tokens: int) -> Costs:
        """Multiplications of one token of samples of `tokens` tokens in each sublayer and in the head."""

    def row_bytes(self, tokens: int, padded: bool) -> int:
        """Bytes that one row takes at most while it runs through a sublayer, in samples of `tokens` tokens."""

    def streamed_bytes(self) -> int:
        """Bytes of weights that are read from a file and held at once; 0 where all are in memory."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its name, to know the model by; streamed blocks are read, one after the other."""

    def on(self, input_ids: Tensor, mask: Tensor | None) -> SamplesPass:
        """The model on checked samples `[S, T]`; mask: bool `[S, T]`, False where a token is padding, or None."""
