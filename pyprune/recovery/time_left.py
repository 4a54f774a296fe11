"""What fits into the minutes that a repair may take, by what a forward pass took on this machine."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyprune.models.decoder import Block, Decoder
from pyprune.recovery.local_steps import Steps

GRADIENT_STEP = 4.0
"""A gradient step takes about so many forward passes of its tokens: one, two on the way back, and Adam."""

CLOSED_FORM = 1.5
"""A closed form takes at most about so many times the forward passes of original and pruned model."""

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

    def is_enough_for_closed_form(self, tokens: int, *models: Decoder) -> bool:
        """Whether a closed form over `tokens` tokens of these models fits."""
        blocks = sum(_parameters(model.sizes().blocks) for model in models)
        return time.perf_counter() + CLOSED_FORM * tokens * blocks * self._of_a_parameter() <= self.until

    def of_passes(self, tokens: int, *blocks: Sequence[Block], heads: int = 0) -> float:
        """Seconds of forward passes of `tokens` tokens through these blocks, and so often through the head."""
        parameters = sum(map(_parameters, blocks)) + heads * self.decoder.head.weight.numel()
        return tokens * parameters * self._of_a_parameter()

    def steps(
        self,
        steps: Steps,
        seq_len: int,
        blocks: Sequence[Block],
        before: Callable[[int], float] = lambda count: 0.0,
    ) -> int:
        """How many of `steps` fit, each of them for all of these blocks with the predictions of both models; 0 where
        that is not worth beginning. before: seconds that so many steps need besides, no fewer for more; the perplexity
        afterwards is counted here."""
        parameters = _parameters(blocks) + self.decoder.head.weight.numel()  # the head needs 3 passes, counted as 4
        a_step = GRADIENT_STEP * parameters * self._of_a_parameter() * steps.batch(seq_len) * seq_len
        left = self.until - time.perf_counter() - self.seconds
        count = bisect.bisect_right(range(1, steps.count + 1), left, key=lambda steps: before(steps) + steps * a_step)
        return count if count >= min(FEWEST_STEPS, steps.count) else 0

    def _of_a_parameter(self) -> float:
        """Seconds that a token takes in each parameter."""
        parameters = self.decoder.head.weight.numel() + _parameters(self.decoder.sizes().blocks)
        return self.seconds / self.tokens / parameters


def _parameters(blocks: Sequence[Block]) -> int:
    return sum(block.parameters() for block in blocks)
