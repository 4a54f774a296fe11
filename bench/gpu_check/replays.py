"""Timing what is replayed: a decode step at a fixed place in a generation, or a chain of calls, by the device's events.

A replay has no Python in it, and the events lie on the device's stream: what is timed is the device's work alone. On a
CPU (a dry run) the same calls are made one after the other and timed by the clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from pyprune.runtime.engine import Engine
from pyprune.runtime.graph import record_cuda_graph
from pyprune.runtime.no_collection import no_collection
from pyprune.runtime.skip import Skip

Step = Callable[[], object]
K = TypeVar("K", bound=Hashable)
WARMUPS = 1


def time_replays(step: Step, device: torch.device, rounds: int, per_round: int) -> list[float]:
    """Seconds of one `step`, a value for each of `rounds` rounds: the mean of `per_round` of them back to back.

    A round before these warms up and is not counted.
    """
    return interleaved_replays({"": step}, device, rounds, per_round)[""]


def interleaved_replays(
    steps: Mapping[K, Step], device: torch.device, rounds: int, per_round: int
) -> dict[K, list[float]]:
    """`time_replays` of several steps that take turns, each round in an order of its own (from a fixed seed)."""
    names = list(steps)
    seconds: dict[K, list[float]] = {name: [] for name in names}
    shuffle = random.Random(0).shuffle
    with no_collection():
        for turn in range(WARMUPS + rounds):
            shuffle(names)
            for name in names:
                taken = _round(steps[name], device, per_round)
                if turn >= WARMUPS:
                    seconds[name].append(taken)
    return seconds


def _round(step: Step, device: torch.device, count: int) -> float:
    if device.type != "cuda":
        before = time.perf_counter()
        for _ in range(count):
            step()
        return (time.perf_counter() - before) / count
    with torch.cuda.device(device):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            step()
        stop.record()
        stop.synchronize()
    return start.elapsed_time(stop) / 1000 / count


@torch.inference_mode()
def decode_replay(engine: Engine, prompts: Tensor, position: int, skip: Skip = None) -> Step:
    """One decode step of `prompts [B, T]` whose next token lies at cache row `position`: the engine's own recording.

    The caches hold random values up to there, as if a generation had come so far. Calling it again repeats the same
    step. Where the engine records nothing (a CPU, plain PyTorch) it is the step itself. An engine has one mask
    and one plan: steps that differ in `skip` need an engine each (weights are shared, only caches are its own).
    """
    for caches in engine._caches:
        for cache in caches or ():
            cache.normal_()
    engine.prefill(prompts, skip=skip)
    tokens = torch.randint(0, engine.decoder.vocab_size, (len(prompts),), device=engine.decoder.device)
    positions = torch.full_like(tokens, position)
    if engine._record is None:
        return torch.inference_mode()(lambda: engine._step(tokens, positions))
    graph = engine._graph(tokens, positions)
    graph(tokens, positions)
    return _holding(graph._replay, engine)


@torch.inference_mode()
def chain_replay(calls: Sequence[Callable[[], object]], device: torch.device) -> Step:
    """All `calls` in their order as one replay; a step of it is the chain, so divide its seconds by their number."""

    def run() -> None:
        for call in calls:
            call()

    return _holding(record_cuda_graph(run, device), calls) if device.type == "cuda" else torch.inference_mode()(run)


def _holding(replay: Step, held: object) -> Step:
    """The replay with what it reads and writes: a graph knows addresses only, and that memory must not be freed."""

    def step(_: object = held) -> None:
        replay()

    return step
