"""Interleaved rounds under pytest-benchmark: every side once a round, so that a slow minute falls on all alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Side:
    """What is timed, and what has to come right before it untimed."""

    run: Callable[[], object]
    prepare: Callable[[], object] = _nothing


def interleave(
    benchmark: Any,
    sides: Mapping[str, Side],
    rounds: int,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every run of every side, in the order of the rounds; the first side is the one that `benchmark` times.

    Each round has an order of its own (shuffled from a fixed seed), so that none keeps the same neighbour. `warmups`
    rounds come before and are dropped.
    """
    first = next(iter(sides))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    shuffle, names = random.Random(0).shuffle, list(sides)
    late: list[str] = []  # those whose turn comes after the first side's in the round

    def time_others(turn: list[str]) -> None:
        for name in turn:
            sides[name].prepare()
            before = clock()
            sides[name].run()
            seconds[name].append(clock() - before)

    def until_first() -> None:
        time_others(late)
        shuffle(names)
        place = names.index(first)
        time_others(names[:place])
        late[:] = names[place + 1 :]
        sides[first].prepare()

    benchmark.pedantic(sides[first].run, setup=until_first, rounds=rounds, warmup_rounds=warmups)
    time_others(late)
    kept = {name: samples[warmups:] for name, samples in seconds.items()}
    return {**kept, first: list(benchmark.stats.stats.data)}
