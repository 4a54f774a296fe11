"""The losses of many candidates in one layer-major pass.

Each block's weights are read once, and all states that have to run through it go in chunks of rows. The states are the
residual streams `[slots, S, T, hidden]` of all different candidates. Logits are summed tile by tile and never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pyprune import ops
from pyprune.models.decoder import FFN, MHA, Decoder
from pyprune.runtime.sequence import activation_dtype, add_ffn, add_mha, embed
from pyprune.scoring.footprint import SKINNY_ROWS, chunk_size
from pyprune.scoring.losses import Losses, predicted_positions, targets_of
from pyprune.scoring.schedule import Schedule, SublayerStep
from pyprune.scoring.state_store import StateStore

Advance = Callable[[int, int | None], None]
"""Called after each chunk: how many sequences went through which sublayer, or through the head where that is None."""

RunSublayer = Callable[[Tensor, Tensor | None], Tensor]
"""From states `[N, T, hidden]` and their mask to the states behind a sublayer."""


@torch.inference_mode()
def candidate_losses(
    decoder: Decoder,
    input_ids: Tensor,
    mask: Tensor | None,
    schedule: Schedule,
    *,
    rows: int,
    store: StateStore | None = None,
    advance: Advance | None = None,
    targets: Tensor | None = None,
) -> Losses:
    """The loss of each candidate of the schedule on checked `input_ids [S, T]`.

    mask: bool `[S, T]`, False where a token is padding, or None. rows: how many go through a block together, at least
    one sample's T. store: states of earlier passes over the same samples, by which the schedule was made; states of
    this pass are added. targets: `[S, T-1]`, what each position predicts, IGNORED where that does not count; the next
    token when None.
    """
    targets = targets_of(input_ids, mask) if targets is None else targets
    blocks, first = decoder.blocks, schedule.first_block
    advance = advance or (lambda sequences, sublayer: None)
    states = _States(decoder, input_ids, mask, targets, schedule.slots, rows, advance)
    # A streamed decoder reads a block from its file when the loop comes to it, and only those of the slice.
    for position, block in enumerate(blocks[first:] if first else blocks, start=first):
        step = schedule.steps[position]
        for slot, lacking in step.starts:
            stored = None
            if position:
                if store is None:
                    raise ValueError(f"the schedule begins at block {position}; a store with its states is expected")
                stored = store.get(position, lacking)
            states.start(slot, stored)
        mha_step, ffn_step = step.sublayers
        states.run(2 * position, mha_step, states.mha(block.mha))
        states.run(2 * position + 1, ffn_step, states.ffn(block.ffn))
        if store is not None and position + 1 < len(blocks):
            for slot, lacking in step.removed_before_next.items():
                store.offer(position + 1, lacking, states.values[slot])
    return Losses(states.losses()[list(schedule.slot_of)], predicted_positions(targets))


class _States:
    """The states of one pass, and how chunks of them go through a sublayer or the head."""

    def __init__(
        self,
        decoder: Decoder,
        input_ids: Tensor,
        mask: Tensor | None,
        targets: Tensor,
        slots: int,
        rows: int,
        advance: Advance,
    ) -> None:
        samples, tokens = input_ids.shape
        self._decoder, self._ids, self._advance = decoder, input_ids, advance
        self._mask = None if mask is None else mask.to(decoder.device)
        self._chunk_limit = max(1, rows // tokens)
        self._cos, self._sin = decoder.rope.tables(tokens, prompt=tokens)
        self._targets = targets.to(decoder.device)
        self.values = torch.empty(
            slots, samples, tokens, decoder.hidden_size, dtype=activation_dtype(decoder), device=decoder.device
        )

    def start(self, slot: int, stored: Tensor | None) -> None:
        """Begin a slot with a stored state, or with the embedding."""
        self.values[slot] = embed(self._decoder, self._ids) if stored is None else stored

    def mha(self, mha: MHA | None) -> RunSublayer:
        """x + MHA(RMSNorm(x)); x where there is none."""
        if mha is None:
            return _unchanged
        return lambda x, mask: add_mha(mha, x, self._cos, self._sin, self._decoder.eps, mask)

    def ffn(self, ffn: FFN | None) -> RunSublayer:
        """x + FFN(RMSNorm(x)); x where there is none."""
        if ffn is None:
            return _unchanged
        return lambda x, mask: add_ffn(ffn, x, self._decoder.eps)

    def run(self, sublayer: int, step: SublayerStep, run: RunSublayer) -> None:
        """Copy the states that split here, then run those that have the sublayer, in place."""
        for source, target in step.splits:
            self.values[target] = self.values[source]
        for first, stop in _ranges(step.slots):
            for x, mask, _ in self._chunks(first, stop):
                x.copy_(_run_padded(run, x, mask))
                self._advance(len(x), sublayer)

    def losses(self) -> Tensor:
        """The summed loss of every slot on every sample, float64 `[slots, S]`.

        One sequence is summed at a time, so that no grouping changes the sum.
        """
        slots, samples = self.values.shape[:2]
        totals = torch.zeros(slots * samples, dtype=torch.float64, device=self._targets.device)
        norm, eps, head = self._decoder.norm, self._decoder.eps, self._decoder.head
        for slot in range(slots):
            for x, _, sequences in self._chunks(slot, slot + 1):
                targets = self._targets[torch.tensor(sequences, device=self._targets.device) % samples]
                losses = ops.linear_cross_entropy(x[:, :-1].contiguous(), head.weight, targets, norm, eps, head.bias)
                totals[sequences[0] : sequences[-1] + 1] = losses.double().sum(1)
                self._advance(len(x), None)
        return totals.view(slots, samples).cpu()

    def _chunks(self, first: int, stop: int) -> Iterator[tuple[Tensor, Tensor | None, range]]:
        """The sequences of slots `first` .. `stop`-1, a chunk at a time: states, their mask, and their indices among
        the sequences of all slots."""
        samples = self.values.shape[1]
        flat = self.values.flatten(0, 1)
        begin, end = first * samples, stop * samples
        while begin < end:
            sequences = range(begin, begin + chunk_size(end - begin, self._chunk_limit))
            begin = sequences.stop
            mask = None if self._mask is None else self._mask[[index % samples for index in sequences]]
            yield flat[sequences.start : begin], mask, sequences


def _unchanged(x: Tensor, mask: Tensor | None) -> Tensor:
    return x


def _run_padded(run: RunSublayer, x: Tensor, mask: Tensor | None) -> Tensor:
    """Run a chunk; a skinny one repeated until it is not, so that its sequences come out as they would in a large one.

    For skinny activations the operators have other kernels, with other last bits.
    """
    copies = SKINNY_ROWS // (x.shape[0] * x.shape[1]) + 1
    if copies == 1:
        return run(x, mask)
    return run(x.repeat(copies, 1, 1), None if mask is None else mask.repeat(copies, 1))[: len(x)]


def _ranges(slots: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending slots as ranges `first` .. `stop`-1 that lie side by side."""
    first = 0
    for position in range(1, len(slots) + 1):
        if position == len(slots) or slots[position] != slots[position - 1] + 1:
            yield slots[first], slots[position - 1] + 1
            first = position
