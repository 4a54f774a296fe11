"""Rankings by position alone: baselines for the data-driven criteria."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy
from torch import Tensor

from pyprune.models.load_any import AnyDecoder
from pyprune.progress import Progress
from pyprune.scoring.measurement import Measurement
from pyprune.scoring.removals import units_of


def first(
    decoder: AnyDecoder, input_ids: Tensor | None, mask: Tensor | None, unit: str, *, progress: Progress | None = None
) -> Measurement:
    """The first units go first: the n-th of L scores n."""
    return _ranked(decoder, unit, lambda count: range(count))


def last(
    decoder: AnyDecoder, input_ids: Tensor | None, mask: Tensor | None, unit: str, *, progress: Progress | None = None
) -> Measurement:
    """The last units go first: the n-th of L scores L-1-n."""
    return _ranked(decoder, unit, lambda count: range(count - 1, -1, -1))


def middle(
    decoder: AnyDecoder, input_ids: Tensor | None, mask: Tensor | None, unit: str, *, progress: Progress | None = None
) -> Measurement:
    """The middle ones go first: the n-th of L scores its distance from the middle, |n - (L-1)/2|."""
    return _ranked(decoder, unit, lambda count: [abs(n - (count - 1) / 2) for n in range(count)])


def every(
    decoder: AnyDecoder,
    input_ids: Tensor | None,
    mask: Tensor | None,
    unit: str,
    *,
    every: int = 2,
    progress: Progress | None = None,
) -> Measurement:
    """Every k-th goes first, from the front: the k-th, 2k-th, .. score 0, all others 1; k = `every`."""
    return _ranked(decoder, unit, lambda count: [int((n + 1) % every != 0) for n in range(count)])


def random(
    decoder: AnyDecoder,
    input_ids: Tensor | None,
    mask: Tensor | None,
    unit: str,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """In random order: units score a permutation of 0 .. L-1 drawn by `numpy.random.default_rng(seed)`."""
    return _ranked(decoder, unit, lambda count: numpy.random.default_rng(seed).permutation(count).tolist())


def _ranked(decoder: AnyDecoder, unit: str, scores: Callable[[int], Sequence[float]]) -> Measurement:
    units = list(units_of(decoder, unit))
    return Measurement(dict(zip(units, map(float, scores(len(units))), strict=True)))
