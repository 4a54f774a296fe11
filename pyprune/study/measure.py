"""Interleaved timing: every runnable once a round, so that a slow minute of the machine falls on all of them alike."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Literal, TypedDict, TypeVar

Key = TypeVar("Key", bound=Hashable)
SpreadKey = Literal["runs", "median", "mean", "min", "max", "q1", "q3"]
SpeedupKey = Literal[SpreadKey, "low", "high"]


class Spread(TypedDict):
    """What `spread` says of samples, as JSON data."""

    runs: int
    median: float
    mean: float
    min: float
    max: float
    q1: float
    q3: float


class Speedup(Spread):
    """What `speedup` says of paired samples, as JSON data."""

    low: float | None
    high: float | None


def interleave(
    runnables: Mapping[Key, Callable[[], object]],
    runs: int,
    warmups: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    done: Callable[[int, int], None] | None = None,
    synchronise: Callable[[], object] | None = None,
) -> dict[Key, list[float]]:
    """Seconds of every run of every runnable, `runs` each in the order of the rounds, after `warmups` rounds dropped.

    Each round has an order of its own (shuffled from a fixed seed), so that none keeps the same neighbour.
    `done(finished, total)` is called after each run, outside the timed part. `synchronise` waits until a device has
    done all it was given; it is called before the clock is read, at the start and at the end of every run.
    """
    names = list(runnables)
    samples: dict[Key, list[float]] = {name: [] for name in names}
    total, finished = (warmups + runs) * len(names), 0
    shuffle = random.Random(0).shuffle
    for turn in range(warmups + runs):
        shuffle(names)
        for name in names:
            run = runnables[name]
            if synchronise is not None:
                synchronise()
            before = clock()
            run()
            if synchronise is not None:
                synchronise()
            after = clock()
            if turn >= warmups:
                samples[name].append(after - before)
            finished += 1
            if done is not None:
                done(finished, total)
    return samples


def spread(samples: Sequence[float]) -> Spread:
    """Number, median, mean, least, greatest and quartiles (by linear interpolation) of the samples."""
    if not samples:
        raise ValueError("no samples")
    quartiles = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
    return {
        "runs": len(samples),
        "median": statistics.median(samples),
        "mean": statistics.fmean(samples),
        "min": min(samples),
        "max": max(samples),
        "q1": quartiles[0],
        "q3": quartiles[2],
    }


def median_interval(samples: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Two order statistics between which the distribution's median lies with at least `level`; None when there are too
    few samples for that (fewer than 6 at 95 %). No distribution is assumed: each sample lies above the median or below
    it with equal chance."""
    ordered, count = sorted(samples), len(samples)
    rank, outside = 0, 0.0
    while rank < count // 2:
        outside += 2 * math.comb(count, rank) / 2**count
        if outside > 1 - level:
            break
        rank += 1
    return (ordered[rank - 1], ordered[count - rank]) if rank else None


def speedup(reference: Sequence[float], samples: Sequence[float]) -> Speedup:
    """Spread of reference seconds / own seconds, paired round by round: above 1 is faster than the reference.

    `low` and `high`: `median_interval` at 95 %, or None.
    """
    ratios = [slow / fast for slow, fast in zip(reference, samples, strict=True)]
    low, high = median_interval(ratios) or (None, None)
    return {**spread(ratios), "low": low, "high": high}
