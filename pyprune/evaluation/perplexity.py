"""Perplexity, its standard error, and bits per byte, from the losses of windows."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from pyprune.models.decoder import Decoder
from pyprune.progress import Progress
from pyprune.scoring.losses import IGNORED, exp_mean, targets_of
from pyprune.scoring.open_evaluator import open_evaluator
from pyprune.scoring.perplexity import check_samples
from pyprune.scoring.removals import NO_REMOVAL

WORK = "evaluate perplexity"
"""What the journal calls it."""


@dataclass(frozen=True)
class WindowLosses:
    """Summed negative log-likelihood of each window in nats, float64 `[W]`, how many tokens it sums over `[W]`, and the
    bytes of text that those stand for `[W]` (None where unknown)."""

    nll: Tensor
    tokens: Tensor
    bytes: Tensor | None = None

    @property
    def perplexity(self) -> float:
        """exp of the mean over all tokens; infinite where float64 cannot hold it. ArithmeticError for NaN."""
        return exp_mean(float(self.nll.sum()), int(self.tokens.sum()))

    @property
    def stderr(self) -> float | None:
        """The standard error of the perplexity over windows; None for a single one.

        Of the mean m = sum(nll) / sum(tokens), a ratio of two sums, it is sqrt(W / (W - 1) sum((nll - m tokens)^2)) /
        sum(tokens); of exp(m), to first order, exp(m) times that.
        """
        windows, total = len(self.nll), float(self.tokens.sum())
        if windows < 2 or math.isinf(self.perplexity):
            return None
        mean = float(self.nll.sum()) / total
        squares = float(((self.nll - mean * self.tokens) ** 2).sum())
        return self.perplexity * math.sqrt(windows / (windows - 1) * squares) / total

    @property
    def bits_per_byte(self) -> float | None:
        """sum(nll) / ln 2 / sum(bytes): the same measure for models with different tokenizers."""
        if self.bytes is None or not int(self.bytes.sum()):
            return None
        return float(self.nll.sum()) / math.log(2) / int(self.bytes.sum())


def window_losses(
    decoder: Decoder,
    input_ids: Tensor,
    targets: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    memory: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    distributed: bool | None = None,
    progress: Progress | None = None,
) -> WindowLosses:
    """The loss of each window of `input_ids [W, N]`, by the fused linear cross-entropy: no logits are kept.

    targets: int64 `[W, N-1]`, IGNORED where a token does not count; the next token when None. sizes: the bytes of text
    `[W]`. memory: bytes that may be taken beyond the model; what is free when None. resume: a journal's file: finished
    windows are kept in it, and not computed again. distributed, progress: as in `pyprune.score`.
    """
    input_ids, _ = check_samples(decoder, input_ids, None)
    with open_evaluator(
        decoder, input_ids, None, WORK, targets=targets, memory=memory, resume=resume, distributed=distributed
    ) as evaluator:
        nll = evaluator.losses([NO_REMOVAL], progress).by_sample[0]
    counted = targets_of(input_ids, None) if targets is None else targets
    return WindowLosses(nll, (counted != IGNORED).sum(1).to(torch.float64).cpu(), sizes)
