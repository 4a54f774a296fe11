"""A decode step recorded once and replayed: on a GPU a CUDA graph, whose replay costs one launch instead of hundreds.

Tests replay the recorded step on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyprune.ops import gpu

Step = Callable[[Tensor, Tensor], Tensor]
"""tokens `[B]`, positions `[B]` -> logits `[B, V]`."""

Replay = Callable[[], None]


class StepGraph:
    """One decode step with fixed buffers: `tokens` and `positions` are written in, `logits` are read out."""

    def __init__(
        self,
        step: Step,
        tokens: Tensor,
        positions: Tensor,
        record: Callable[[Callable[[], None]], Replay] | None = None,
    ) -> None:
        self.tokens, self.positions = tokens.clone(), positions.clone()
        self.logits: Tensor | None = None

        def run() -> None:
            self.logits = step(self.tokens, self.positions)

        self._replay = (record or record_cuda_graph)(run)

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The step's logits; a copy, because the next replay overwrites the graph's own."""
        self.tokens.copy_(tokens)
        self.positions.copy_(positions)
        self._replay()
        assert self.logits is not None
        return self.logits.clone()


def record_cuda_graph(run: Callable[[], None]) -> Replay:
    """Record `run` as a CUDA graph. It runs a few times first, on another stream: kernels compile and allocate then.

    A decode step may run more than once: it writes the same keys and values to the same place each time.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with gpu.recording(), torch.cuda.graph(graph):
        run()
    return graph.replay
