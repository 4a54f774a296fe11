"""Recording a CUDA graph on one GPU of several, seen on a stand-in for torch.cuda with two of them."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

import pytest
import torch

from pyprune.runtime.graph import StepGraph, record_cuda_graph

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


class Stream:
    def __init__(self, gpus: TwoGPUs, device: torch.device | None) -> None:
        self.device = gpus.current if device is None else device
        self.waited: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        assert other.device == self.device
        self.waited.append(other)


class TwoGPUs:
    """What of torch.cuda a recording uses, with its rules: a stream belongs to the device that was current (or named)
    when it was made, work goes to the current stream of its tensors' device, a recording takes what goes to its stream,
    and without one named it uses a single stream for the process, on the device that was current first."""

    def __init__(self) -> None:
        self.current = FIRST
        self.streams = {device: Stream(self, device) for device in (FIRST, SECOND)}
        self.default_capture: Stream | None = None
        self.capturing: tuple[Stream, CUDAGraph] | None = None
        self.ran: list[tuple[str, Stream]] = []  # at once, and on which stream
        self.captures: list[tuple[Stream, str]] = []

    def launch(self, what: str, device: torch.device) -> None:
        stream = self.streams[device]
        if self.capturing is not None and self.capturing[0] is stream:
            self.capturing[1].work.append(what)
        else:
            self.ran.append((what, stream))

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = self.streams[stream.device]
        with self.device(stream.device):
            self.streams[stream.device] = stream
            try:
                yield
            finally:
                self.streams[stream.device] = before

    @contextlib.contextmanager
    def graph(
        self, graph: CUDAGraph, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        if stream is None:
            stream = self.default_capture = self.default_capture or Stream(self, None)
        self.captures.append((stream, capture_error_mode))
        with self.stream(stream):
            self.capturing = (stream, graph)
            try:
                yield
            finally:
                self.capturing = None


class CUDAGraph:
    def __init__(self, gpus: TwoGPUs) -> None:
        self.gpus, self.work = gpus, []
        self.replayed: list[tuple[torch.device, Stream]] = []

    def replay(self) -> None:
        current = self.gpus.current
        self.replayed.append((current, self.gpus.streams[current]))
        for what in self.work:
            self.gpus.ran.append((what, self.gpus.streams[current]))


@pytest.fixture
def gpus(monkeypatch) -> TwoGPUs:
    two = TwoGPUs()
    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(two, name))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: Stream(two, device))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: CUDAGraph(two))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: two.streams[device or two.current])
    return two


@pytest.mark.parametrize("order", [(FIRST, SECOND), (SECOND, FIRST), (SECOND, SECOND)], ids=str)
@pytest.mark.parametrize("current", [FIRST, SECOND], ids=str)
def test_a_step_is_recorded_and_replayed_on_its_own_device_whichever_is_current(gpus, current, order):
    gpus.current = current
    replays = [record_cuda_graph(lambda device=device: gpus.launch(str(device), device), device) for device in order]
    assert [stream.device for stream, _ in gpus.captures] == list(order)
    assert gpus.captures[0][0] is not gpus.captures[1][0]
    warmed = [stream for _, stream in gpus.ran]
    assert all(stream.waited == [gpus.streams[stream.device]] for stream in warmed)  # and the recording after them
    assert {stream for stream, _ in gpus.captures} == set(warmed)
    for device, replay in zip(order, replays, strict=True):
        gpus.ran.clear()
        replay()
        assert gpus.ran == [(str(device), gpus.streams[device])]  # the step, once, on its device's current stream
    assert gpus.current == current
    for device in set(order):
        assert gpus.streams[device].waited == [s for s, _ in gpus.captures if s.device == device]


def test_a_replay_goes_to_the_stream_that_is_current_on_the_device_then(gpus):
    replay = record_cuda_graph(lambda: gpus.launch("step", SECOND), SECOND)
    other = Stream(gpus, SECOND)
    gpus.ran.clear()
    with gpus.stream(other), gpus.device(FIRST):
        replay()
    assert gpus.ran == [("step", other)]


def test_a_step_of_the_engine_is_recorded_on_the_device_of_its_tokens():
    devices: list[torch.device] = []

    def record(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        devices.append(device)
        return run

    tokens = torch.zeros(1, dtype=torch.int64, device="meta")
    StepGraph(lambda tokens, positions: tokens, tokens, tokens, record)
    assert devices == [tokens.device]


def test_other_threads_may_allocate_while_a_step_is_recorded(gpus):
    record_cuda_graph(lambda: gpus.launch("step", FIRST), FIRST)
    assert [mode for _, mode in gpus.captures] == ["thread_local"]


@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_python_collects_before_a_recording_and_never_during_it(gpus, monkeypatch, collects: bool, fails: bool):
    events: list[str] = []
    monkeypatch.setattr(gc, "collect", lambda: events.append("collected"))

    def run() -> None:
        recorded = gpus.capturing is not None
        events.append(f"{'recorded' if recorded else 'warmed up'}, collector {'on' if gc.isenabled() else 'off'}")
        if recorded and fails:
            raise KeyError

    before = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        with pytest.raises(KeyError) if fails else contextlib.nullcontext():
            record_cuda_graph(run, SECOND)
        assert gc.isenabled() == collects
    finally:
        (gc.enable if before else gc.disable)()
    warm = f"warmed up, collector {'on' if collects else 'off'}"
    assert events == [warm, warm, warm, "collected", "recorded, collector off"]
    assert gpus.current == FIRST
    assert gpus.streams[SECOND] is not gpus.captures[0][0]  # the stream of the recording is left, too
