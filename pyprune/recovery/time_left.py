"""What fits into the minutes that a repair may take, by what a forward pass took on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pyprune.models.decoder import Block, Decoder
from pyprune.recovery.local_steps import Steps

GRADIENT_STEP = 4.0
"""A gradient step takes about so many forward passes of its tokens: one, two on the way back, and Adam."""

FEWEST_STEPS = 20
"""Fewer are not worth beginning."""


@dataclass(frozen=True)
class TimeLeft:
    """until: when all is to be done, by `time.perf_counter`. seconds: that one forward pass of `decoder` with its head
    took over `tokens` tokens."""

    until: float
    seconds: float
    decoder: Decoder
    tokens: int

    def is_over(self) -> bool:
        """Whether nothing may begin any more."""
        return time.perf_counter() >= self.until

    def steps(self, steps: Steps, seq_len: int, blocks: Sequence[Block], head_share: float = 0.0) -> int:
        """How many of `steps` fit, each of them for all of these blocks and, for a share of the tokens, for the head;
        0 where that is not worth beginning."""
        head = self.decoder.head.weight.numel()
        in_all = head + _parameters(self.decoder.sizes().blocks)
        a_token = self.seconds / self.tokens / in_all * (_parameters(blocks) + head_share * head)
        a_step = GRADIENT_STEP * a_token * steps.batch(seq_len) * seq_len
        count = min(steps.count, int(max(0.0, self.until - time.perf_counter()) / a_step))
        return count if count >= min(FEWEST_STEPS, steps.count) else 0


def _parameters(blocks: Sequence[Block]) -> int:
    return sum(tensor.numel() for block in blocks for _, tensor in block.tensors())
