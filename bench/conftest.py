"""Pairs: a peer is timed right before every round of ours, so a slow minute of the machine falls on both alike."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

import pyprune
from pyprune.models.decoder import Decoder
from pyprune.study.machine import describe
from pyprune.study.measure import speedup, spread


@pytest.fixture
def paired(benchmark, request: pytest.FixtureRequest):
    """paired(ours, peer, rounds, name): time both; the ratio peer/ours, its spread and all samples go to the JSON."""

    def run(
        ours: Callable[[], object], peer: Callable[[], object], rounds: int, peer_name: str, warmups: int = 1
    ) -> dict:
        peers: list[float] = []

        def time_peer() -> None:
            before = time.perf_counter()
            peer()
            peers.append(time.perf_counter() - before)

        benchmark.pedantic(ours, setup=time_peer, rounds=rounds, warmup_rounds=warmups)
        peers = peers[-rounds:]  # the first ones warmed up
        samples = list(benchmark.stats.stats.data)
        ratio = speedup(peers, samples)
        benchmark.extra_info.update(
            peer=peer_name, peer_seconds=peers, peer_spread=spread(peers), our_seconds=samples, speedup=ratio
        )
        lines = request.config.stash.setdefault(LINES, [])
        lines.append(
            f"{request.node.name}: {ratio['median']:.2f}x {peer_name} "
            f"(quartiles {ratio['q1']:.2f} to {ratio['q3']:.2f}, {rounds} rounds; "
            f"{spread(samples)['median']:.4g} s against {spread(peers)['median']:.4g} s)"
        )
        return ratio

    return run


LINES = pytest.StashKey[list]()


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    for line in config.stash.get(LINES, []):
        terminalreporter.write_line(line)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Keep what a result must be read with, and no host name."""
    machine_info.clear()
    machine_info.update(describe())


@pytest.fixture(scope="session")
def smollm2() -> Decoder:
    return pyprune.load("smollm2-135m")
