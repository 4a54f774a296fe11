"""The last states of many candidates through final norm and head: what each measure sums up over each sample.

Logits exist as tiles only. Those of the original are made once for each tile and compared with every candidate's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyprune.scoring.footprint import VOCABULARY_TILE, chunk_size
from pyprune.scoring.layered_model import SamplesPass
from pyprune.scoring.measures import ComparingMeasure, LogitsMeasure, LossMeasure, Measure, StateMeasure

Advance = Callable[[int, int | None], None]
"""Called after each chunk: how many sequences went through which sublayer or edit, or through the head where that is
None."""


@dataclass(frozen=True)
class Part:
    """Last states `[slots, S, T, hidden]` of candidates on some samples, which of all samples those are, the slot of
    the original where it is compared with, and how many sequences go through the head together."""

    on_samples: SamplesPass
    samples: slice
    states: Tensor
    original: int | None
    vocab_size: int
    chunk_samples: int

    def chunks(self) -> Iterator[slice]:
        """The part's samples, a chunk at a time, counted from its first."""
        count, begin = self.states.shape[1], 0
        while begin < count:
            size = chunk_size(count - begin, self.chunk_samples)
            yield slice(begin, begin + size)
            begin += size

    def of_part(self, values: Tensor) -> Tensor:
        """The rows of this part's samples, of values by sample."""
        return values[self.samples].to(self.states.device)


def measured(part: Part, measures: Sequence[Measure], advance: Advance) -> Tensor:
    """Each measure's sums for each slot on each sample, float64 `[measures, slots, S]`. The states are overwritten."""
    slots, samples = part.states.shape[:2]
    sums = torch.zeros(len(measures), slots, samples, dtype=torch.float64, device=part.states.device)
    for measure, measure_sums in zip(measures, sums, strict=True):
        if isinstance(measure, LossMeasure):
            _sum_losses(part, measure, measure_sums, advance)
    comparing = [
        (measure, measure_sums)
        for measure, measure_sums in zip(measures, sums, strict=True)
        if isinstance(measure, ComparingMeasure)
    ]
    if comparing:
        _compare(part, comparing, advance)
    return sums.cpu()


def _sum_losses(part: Part, measure: LossMeasure, sums: Tensor, advance: Advance) -> None:
    """Put the summed loss of every slot on every sample into `sums [slots, S]`.

    One sequence is summed at a time, so that no grouping changes the sum.
    """
    targets = part.of_part(measure.targets)
    asked = None if measure.asked is None else measure.asked.to(targets.device)
    for slot, states in enumerate(part.states):
        for chunk in part.chunks():
            x, chunk_targets = states[chunk, :-1], targets[chunk]
            if asked is not None:
                x, chunk_targets = x[:, asked], chunk_targets[:, asked]
            losses = part.on_samples.losses(x.contiguous(), chunk_targets.contiguous())
            sums[slot, chunk] = losses.double().sum(1)
            advance(chunk.stop - chunk.start, None)


def _compare(part: Part, comparing: Sequence[tuple[ComparingMeasure, Tensor]], advance: Advance) -> None:
    """Put what every slot differs from the original into each measure's sums `[slots, S]`."""
    if part.original is None:
        raise ValueError("a measure compares with the original, which is not among the candidates")
    for states in part.states:
        for chunk in part.chunks():
            states[chunk] = part.on_samples.final(states[chunk])
    for chunk in part.chunks():
        original = part.states[part.original, chunk]
        for measure, sums in comparing:
            if isinstance(measure, StateMeasure):
                for slot, states in enumerate(part.states):
                    distances = measure.distances(states[chunk].double(), original.double())
                    sums[slot, chunk] = _total(distances, part.of_part(measure.counted)[chunk])
        logits_measures = [(measure, sums) for measure, sums in comparing if isinstance(measure, LogitsMeasure)]
        if logits_measures:
            _compare_logits(part, chunk, original, logits_measures)
        advance(len(part.states) * (chunk.stop - chunk.start), None)


def _compare_logits(
    part: Part, chunk: slice, original: Tensor, measures: Sequence[tuple[LogitsMeasure, Tensor]]
) -> None:
    """The same for measures of logits, of one chunk of samples."""
    comparisons = [
        [measure.comparison(original.shape[:2], original.device) for measure, _ in measures] for _ in part.states
    ]
    for start in range(0, part.vocab_size, VOCABULARY_TILE):
        stop = min(start + VOCABULARY_TILE, part.vocab_size)
        original_logits = part.on_samples.logits(original, start, stop)
        for states, of_slot in zip(part.states, comparisons, strict=True):
            logits = part.on_samples.logits(states[chunk], start, stop)
            for comparison in of_slot:
                comparison.add(logits, original_logits, start)
    for place, (measure, sums) in enumerate(measures):
        counted = part.of_part(measure.counted)[chunk]
        for slot, of_slot in enumerate(comparisons):
            sums[slot, chunk] = _total(of_slot[place].result(), counted)


def _total(values: Tensor, counted: Tensor) -> Tensor:
    """The sum over each sample's tokens that count. Those that do not may hold anything, NaN too."""
    return torch.where(counted, values, 0.0).sum(1)
