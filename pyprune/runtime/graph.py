"""A decode step recorded once and replayed: on a GPU a CUDA graph, whose replay costs one launch instead of hundreds.

Tests replay the recorded step on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyprune.ops import gpu
from pyprune.runtime.no_collection import no_collection

Step = Callable[[Tensor, Tensor], Tensor]
"""tokens `[B]`, positions `[B]` -> logits `[B, V]`."""

Replay = Callable[[], None]

Record = Callable[[Callable[[], None], torch.device], Replay]
"""what to record, the device of its tensors -> its replay"""


class StepGraph:
    """One decode step with fixed buffers: `tokens` and `positions` are written in, `logits` are read out."""

    def __init__(
        self,
        step: Step,
        tokens: Tensor,
        positions: Tensor,
        record: Record | None = None,
    ) -> None:
        self.tokens, self.positions = tokens.clone(), positions.clone()
        self.logits: Tensor | None = None

        def run() -> None:
            self.logits = step(self.tokens, self.positions)

        self._replay = (record or record_cuda_graph)(run, tokens.device)

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The step's logits; a copy, because the next replay overwrites the graph's own."""
        self.tokens.copy_(tokens)
        self.positions.copy_(positions)
        self._replay()
        assert self.logits is not None
        return self.logits.clone()


def record_cuda_graph(run: Callable[[], None], device: torch.device) -> Replay:
    """Record `run`, whose tensors are on `device`, as a CUDA graph. It runs a few times first, on another stream:
    kernels compile and allocate then.

    A decode step may run more than once: it writes the same keys and values to the same place each time.
    """
    with torch.cuda.device(device):
        # Of this device: torch's own capture stream is one for the process, on the device that recorded first. What is
        # started on another device runs at once, and the graph stays empty.
        side = torch.cuda.Stream(device)
        before = torch.cuda.current_stream(device)
        side.wait_stream(before)
        with torch.cuda.stream(side):  # also left where a capture does not begin
            for _ in range(3):
                run()
            graph = torch.cuda.CUDAGraph()
            # thread_local: what another thread allocates has nothing to do with this recording.
            recorded = torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local")
            with no_collection(), gpu.recording(device), recorded:
                run()
        before.wait_stream(side)

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay
