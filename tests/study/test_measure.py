"""Interleaving, warm-ups and the statistics, against a clock that stands still unless told to move."""

from __future__ import annotations

import pytest

from pyprune.study.measure import interleave, speedup, spread


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def runnables(clock: Clock, seconds: dict[str, float], order: list[str]):
    def make(name: str):
        def run() -> None:
            order.append(name)
            clock.now += seconds[name]

        return run

    return {name: make(name) for name in seconds}


def test_each_round_runs_all_once_and_starts_one_further():
    clock, order = Clock(), []
    interleave(runnables(clock, {"a": 1, "b": 2, "c": 3}, order), runs=3, warmups=1, clock=clock)
    assert ["".join(order[start : start + 3]) for start in range(0, 12, 3)] == ["abc", "bca", "cab", "abc"]


def test_every_sample_is_kept_and_warmups_are_not():
    clock, order = Clock(), []
    samples = interleave(runnables(clock, {"a": 1.0, "b": 2.5}, order), runs=2, warmups=3, clock=clock)
    assert samples == {"a": [1.0, 1.0], "b": [2.5, 2.5]}
    assert len(order) == 10


def test_samples_stand_in_the_order_of_the_rounds():
    clock = Clock()
    lengths = iter([9.0, 1.0, 2.0, 4.0])

    def run() -> None:
        clock.now += next(lengths)

    assert interleave({"only": run}, runs=3, warmups=1, clock=clock) == {"only": [1.0, 2.0, 4.0]}


def test_time_spent_in_the_progress_callback_is_not_measured():
    clock, seen = Clock(), []

    def done(finished: int, total: int) -> None:
        clock.now += 50
        seen.append((finished, total))

    samples = interleave(runnables(clock, {"a": 1.0, "b": 1.0}, []), runs=1, warmups=1, clock=clock, done=done)
    assert samples == {"a": [1.0], "b": [1.0]}
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_spread_of_four_samples_interpolates_the_quartiles():
    assert spread([4.0, 1.0, 3.0, 2.0]) == {
        "runs": 4, "median": 2.5, "mean": 2.5, "min": 1.0, "max": 4.0, "q1": 1.75, "q3": 3.25,
    }  # fmt: skip


def test_spread_of_one_sample_is_that_sample():
    assert set(spread([2.0]).values()) == {1, 2.0}


def test_spread_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        spread([])


def test_speedup_pairs_rounds_so_that_a_slow_minute_cancels():
    # The machine is ten times slower in the second round, for both: the speed-up stays two in each.
    assert speedup([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])["q1"] == 2.0
    assert speedup([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])["q3"] == 2.0


def test_speedup_needs_as_many_rounds_on_both_sides():
    with pytest.raises(ValueError, match="zip"):
        speedup([1.0, 2.0], [1.0])
