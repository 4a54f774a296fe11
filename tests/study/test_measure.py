"""Interleaving, warm-ups and the statistics, against a clock that stands still unless told to move."""

from __future__ import annotations

import pytest
import torch

from pyprune.study.device import synchroniser
from pyprune.study.measure import interleave, median_interval, speedup, spread


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


def test_each_round_runs_all_once_in_an_order_of_its_own_that_repeats_next_time():
    clock, orders = Clock(), ([], [])
    for order in orders:
        interleave(runnables(clock, dict.fromkeys("abcdefgh", 1), order), runs=29, warmups=1, clock=clock)
    assert orders[0] == orders[1]
    rounds = ["".join(orders[0][start : start + 8]) for start in range(0, 240, 8)]
    assert all(sorted(names) == list("abcdefgh") for names in rounds)
    for name in "abcdefgh":  # no runnable keeps its neighbour: 29 rounds of 7 others give about 4 each
        before = [names[names.index(name) - 1] for names in rounds if names[0] != name]
        assert max(before.count(other) for other in "abcdefgh") < len(rounds) // 2


@pytest.mark.parametrize(("count", "ranks"), [(5, None), (6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (20, (6, 15))])
def test_the_interval_of_a_median_is_that_of_the_sign_test(count: int, ranks: tuple[int, int] | None):
    # Ranks of a 95 % interval as tables of the sign test give them.
    samples = [float(n) for n in range(count, 0, -1)]
    assert median_interval(samples) == (None if ranks is None else tuple(map(float, ranks)))


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


def test_the_clock_is_read_when_the_device_has_done_its_work():
    clock, pending = Clock(), [100.0]  # what the device still has to do from before is nobody's time

    def run() -> None:
        pending.append(2.0)  # handed over at once, done later

    def synchronise() -> None:
        clock.now += sum(pending)
        pending.clear()

    samples = interleave({"a": run, "b": run}, runs=2, clock=clock, synchronise=synchronise)
    assert samples == {"a": [2.0, 2.0], "b": [2.0, 2.0]}


def test_the_device_is_waited_for_before_and_after_every_run():
    events = []
    interleave(
        {name: (lambda name=name: events.append(name)) for name in "ab"},
        runs=1,
        clock=lambda: events.append("clock") or 0.0,
        synchronise=lambda: events.append("wait"),
    )
    assert " ".join(events) == "wait clock a wait clock wait clock b wait clock"


def test_a_cpu_is_not_waited_for():
    assert synchroniser(torch.device("cpu")) is None


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
