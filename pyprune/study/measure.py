"""Interleaved timing: every runnable once a round, so that a slow minute of the machine falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def interleave(
    runnables: Mapping[str, Callable[[], object]],
    runs: int,
    warmups: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    done: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every run of every runnable, `runs` each in the order of the rounds, after `warmups` rounds dropped.

    Round r starts at runnable r (modulo their number), so that none always follows the same cold or hot neighbour.
    `done(finished, total)` is called after each run, outside the timed part.
    """
    names = list(runnables)
    samples: dict[str, list[float]] = {name: [] for name in names}
    total, finished = (warmups + runs) * len(names), 0
    for turn in range(warmups + runs):
        start = turn % len(names) if names else 0
        for name in names[start:] + names[:start]:
            run = runnables[name]
            before = clock()
            run()
            after = clock()
            if turn >= warmups:
                samples[name].append(after - before)
            finished += 1
            if done is not None:
                done(finished, total)
    return samples


def spread(samples: Sequence[float]) -> dict[str, float | int]:
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


def speedup(reference: Sequence[float], samples: Sequence[float]) -> dict[str, float | int]:
    """Spread of reference seconds / own seconds, paired round by round: above 1 is faster than the reference."""
    return spread([slow / fast for slow, fast in zip(reference, samples, strict=True)])
