"""The loss of many candidates in one pass over the weights.

Layer-major: each block's weights are read once, and all states that have to run through it go in chunks of rows. States
are the residual stream `[slots, S, T, hidden]` of all different candidates; the head's logits are summed tile by
tile and never stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyprune import ops
from pyprune.models.decoder import MHA, Decoder
from pyprune.runtime.sequence import activation_dtype, add_ffn, add_mha, embed
from pyprune.scoring.footprint import SKINNY_ROWS, chunk_size
from pyprune.scoring.removals import Removal, present_places
from pyprune.scoring.schedule import Half, Schedule, schedule
from pyprune.scoring.states import StateStore

Advance = Callable[[int, int | None], None]
"""Told what is done, often: how many sequences went through the half at a place, or the head where that is None."""

IGNORED = -100


@dataclass(frozen=True)
class Losses:
    """Summed negative log-likelihood of each candidate on each sample in nats, float64 `[candidates, S]`, and over how
    many predicted positions of all samples it was summed."""

    by_sample: Tensor
    positions: int

    @property
    def totals(self) -> list[float]:
        """Each candidate's sum over all samples."""
        return self.by_sample.sum(1).tolist()

    def __add__(self, other: Losses) -> Losses:
        """The losses of the same candidates on these samples and more."""
        return Losses(torch.cat([self.by_sample, other.by_sample], 1), self.positions + other.positions)


@torch.inference_mode()
def losses(
    decoder: Decoder,
    input_ids: Tensor,
    mask: Tensor | None,
    removals: Sequence[Removal],
    *,
    rows: int,
    store: StateStore | None = None,
    advance: Advance | None = None,
) -> Losses:
    """The loss of each candidate, the decoder without `removals[i]`, on checked `input_ids [S, T]`.

    mask: bool `[S, T]`, False where a token is padding, or None. rows: how many go through a block together, at least
    one sample's T. store: states of earlier passes over the same samples, used and added to.
    """
    blocks = decoder.blocks
    plan = schedule(len(blocks), present_places(decoder), removals, None if store is None else store.has)
    run = _Pass(decoder, input_ids, mask, plan, rows, advance or (lambda sequences, place: None))
    todo = range(plan.first, len(blocks))
    for place, block in zip(todo, blocks[plan.first :] if plan.first else blocks, strict=True):
        step = plan.steps[place]
        for slot, lacking in step.starts:
            run.start(slot, None if place == 0 else store.get(place, lacking))
        run.half(2 * place, step.halves[0], lambda part, seen, mha=block.mha: run.mha(mha, part, seen))
        run.half(2 * place + 1, step.halves[1], lambda part, seen, ffn=block.ffn: add_ffn(ffn, part, decoder.eps))
        if store is not None and place + 1 < len(blocks):
            for slot, lacking in step.lacking.items():
                store.offer(place + 1, lacking, run.states[slot])
    return Losses(run.losses()[list(plan.slot_of)], run.positions)


class _Pass:
    """The states of one pass, and how a stretch of them goes through something."""

    def __init__(
        self, decoder: Decoder, input_ids: Tensor, mask: Tensor | None, plan: Schedule, rows: int, advance: Advance
    ) -> None:
        samples, tokens = input_ids.shape
        self._decoder, self._ids, self._advance = decoder, input_ids, advance
        self._mask = None if mask is None else mask.to(decoder.device)
        self._sequences = max(1, rows // tokens)
        self._cos, self._sin = decoder.rope.tables(tokens, prompt=tokens)
        self.states = torch.empty(
            plan.slots, samples, tokens, decoder.hidden_size, dtype=activation_dtype(decoder), device=decoder.device
        )
        self._targets = targets_of(input_ids, mask).to(decoder.device)
        self.positions = predicted_positions(input_ids, mask)

    def start(self, slot: int, state: Tensor | None) -> None:
        """Begin a slot with a stored state, or with the embedding."""
        self.states[slot] = embed(self._decoder, self._ids) if state is None else state

    def mha(self, mha: MHA, part: Tensor, seen: Tensor | None) -> Tensor:
        return add_mha(mha, part, self._cos, self._sin, self._decoder.eps, seen)

    def half(self, place: int, half: Half, run: Callable[[Tensor, Tensor | None], Tensor]) -> None:
        """Split the states that part here, then run the half for those that have it, in place."""
        for source, target in half.splits:
            self.states[target] = self.states[source]
        for first, last in _stretches(half.run):
            for part, seen, _ in self._parts(first, last):
                part.copy_(_as_many(run, part, seen))
                self._advance(len(part), place)

    def losses(self) -> Tensor:
        """The summed loss of every slot on every sample, float64 `[slots, S]`.

        One sequence is summed at a time, so that no grouping changes the sum.
        """
        slots, samples = self.states.shape[:2]
        totals = torch.zeros(slots * samples, dtype=torch.float64, device=self._targets.device)
        norm, eps, head = self._decoder.norm, self._decoder.eps, self._decoder.head
        for slot in range(slots):
            for part, _, places in self._parts(slot, slot + 1):
                targets = self._targets[torch.tensor(places, device=self._targets.device) % samples]
                found = ops.linear_cross_entropy(part[:, :-1].contiguous(), head.weight, targets, norm, eps, head.bias)
                totals[places[0] : places[-1] + 1] = found.double().sum(1)
                self._advance(len(part), None)
        return totals.view(slots, samples).cpu()

    def _parts(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor | None, list[int]]]:
        """The sequences of slots `first` .. `last`-1, a chunk at a time: states, their mask, their places in all."""
        samples = self.states.shape[1]
        flat = self.states.flatten(0, 1)
        begin, end = first * samples, last * samples
        while begin < end:
            places = list(range(begin, begin + chunk_size(end - begin, self._sequences)))
            begin = places[-1] + 1
            seen = None if self._mask is None else self._mask[[place % samples for place in places]]
            yield flat[places[0] : begin], seen, places


def _as_many(run: Callable[[Tensor, Tensor | None], Tensor], part: Tensor, seen: Tensor | None) -> Tensor:
    """Run a chunk; a small one several times over, so that its sequences come out as they would in a large one.

    For few rows the operators have other kernels, with other last bits.
    """
    copies = SKINNY_ROWS // (part.shape[0] * part.shape[1]) + 1
    if copies == 1:
        return run(part, seen)
    return run(part.repeat(copies, 1, 1), None if seen is None else seen.repeat(copies, 1))[: len(part)]


def predicted_positions(input_ids: Tensor, mask: Tensor | None) -> int:
    """How many positions of `input_ids [S, T]` predict a token."""
    return int((targets_of(input_ids, mask) != IGNORED).sum())


def exp_mean(total: float, positions: int) -> float:
    """exp(total / positions), infinite where float64 cannot hold it; ArithmeticError for a loss that is NaN."""
    mean = total / positions
    if math.isnan(mean):
        raise ArithmeticError("the loss is not a number: activations overflow; float32 or bfloat16 weights may help")
    return math.exp(mean) if mean < 709 else math.inf


def targets_of(input_ids: Tensor, mask: Tensor | None) -> Tensor:
    """The token after each one, int64 `[S, T-1]`; IGNORED where either of the two is padding."""
    targets = input_ids[:, 1:].to(torch.int64)
    return targets if mask is None else targets.masked_fill(~(mask[:, 1:] & mask[:, :-1]), IGNORED)


def _stretches(slots: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending slots as stretches `first` .. `last`-1 that lie side by side."""
    first = 0
    for place in range(1, len(slots) + 1):
        if place == len(slots) or slots[place] != slots[place - 1] + 1:
            yield slots[first], slots[place - 1] + 1
            first = place
