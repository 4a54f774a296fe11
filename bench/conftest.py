"""Fixtures of the benchmarks: interleaved sides, the memory's read limit, and the tables that are printed last."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import pyprune
from bench.ceilings import MemoryReader
from bench.peers import Peer, peers
from bench.rounds import Side, interleave
from bench.tables import aligned
from pyprune.models.decoder import Decoder
from pyprune.study.machine import describe
from pyprune.study.measure import speedup, spread

TABLES = pytest.StashKey[dict[str, list[dict[str, str]]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, default=None, help="rounds of every benchmark, in place of its own number")
    parser.addoption("--documents", type=int, default=100, help="documents of every task (bench/test_tasks.py)")


@pytest.fixture
def interleaved(benchmark, request: pytest.FixtureRequest):
    """interleaved(sides, rounds): raw seconds of each side, the first side timed by pytest-benchmark.

    The samples, their spread and, under "ratio", each side's seconds over the first one's go to the JSON.
    """

    def run(sides: Mapping[str, Side], rounds: int, warmups: int = 1) -> dict[str, list[float]]:
        seconds = interleave(benchmark, sides, request.config.getoption("--rounds") or rounds, warmups)
        first = seconds[next(iter(sides))]
        benchmark.extra_info.update(
            seconds=seconds,
            spread={name: spread(samples) for name, samples in seconds.items()},
            ratio={name: speedup(samples, first) for name, samples in seconds.items() if samples is not first},
        )
        return seconds

    return run


@pytest.fixture
def table(request: pytest.FixtureRequest):
    """table(title, row): add a row, text by column, to the table of that title; printed after all benchmarks."""
    tables = request.config.stash.setdefault(TABLES, {})

    def add(title: str, row: dict[str, str]) -> None:
        tables.setdefault(title, []).append(row)

    return add


@pytest.hookimpl(trylast=True)  # after pytest-benchmark's own table
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for title, rows in config.stash.get(TABLES, {}).items():
        terminalreporter.write_line("")
        for line in (title, *aligned(rows)):
            terminalreporter.write_line(line)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Keep what a result must be read with, and no host name."""
    machine_info.clear()
    machine_info.update(describe())


@pytest.fixture(scope="session")
def smollm2() -> Decoder:
    return pyprune.load("smollm2-135m")


@pytest.fixture(scope="session")
def memory() -> MemoryReader:
    return MemoryReader()


@pytest.fixture(scope="session")
def all_peers() -> Iterator[list[Peer]]:
    with tempfile.TemporaryDirectory() as folder:
        yield peers(Path(folder))
