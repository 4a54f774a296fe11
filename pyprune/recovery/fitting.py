"""What all closed forms share: which windows are fitted and which are held out, how tokens count, and the ridge."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder, Linear
from pyprune.recovery.streams import Stage, wide
from pyprune.regression.held_out import HELD_OUT_EVERY, is_held_out
from pyprune.regression.normal_equations import RIDGES, Fit, NormalEquations, fit_linear
from pyprune.regression.token_weights import token_weights
from pyprune.scoring.process_group import SINGLE_PROCESS, ProcessGroup

Rows = Callable[[slice], Tensor]
"""What a projection's output `[N, T, hidden]` should be on some samples."""


TOKENS_OF_INPUT = 10
"""Tokens for each input of the widest projection are enough where gradient steps follow: the time of more windows wins
back more there."""


def enough_samples(model: Decoder, seq_len: int) -> int:
    """How many windows a closed form takes of those that there are, where gradient steps follow."""
    blocks = model.sizes().blocks
    widths = [block.ffn.down.weight.shape[1] for block in blocks if block.ffn is not None]
    widths += [block.mha.o.weight.shape[1] for block in blocks if block.mha is not None]
    return HELD_OUT_EVERY * -(-TOKENS_OF_INPUT * max(widths, default=1) // (HELD_OUT_EVERY * seq_len))


@dataclass(frozen=True)
class Fitting:
    """How projections are fitted.

    ridges: tried in units of the mean diagonal of the inputs' second moments; the best on the held-out windows is
    taken. weighting, first: `token_weights`. exact: products in float64 instead of float32 summed in float64. numbers:
    this process's samples, by their numbers among all (None: all of them). holds_out: whether every eighth window is
    kept from the fits.
    """

    ridges: tuple[float, ...] = RIDGES
    weighting: str = "relative"
    first: float = 1.0
    exact: bool = False
    numbers: tuple[int, ...] | None = None
    group: ProcessGroup = SINGLE_PROCESS
    holds_out: bool = True

    def is_fitted(self, sample: int) -> bool:
        """Whether a sample is fitted and not held out."""
        return not (self.holds_out and is_held_out(sample if self.numbers is None else self.numbers[sample]))

    def fitted(self, chunk: slice, device: torch.device) -> Tensor:
        """Of each sample of a chunk whether it is fitted, bool `[N]`."""
        return torch.tensor([self.is_fitted(sample) for sample in range(chunk.start, chunk.stop)], device=device)

    def sums(self, stage: Stage, inputs: Rows, targets: Rows, bias: bool) -> tuple[NormalEquations, NormalEquations]:
        """The sums of the fitted and of the held-out windows; all processes' where there are several."""
        device, hidden = stage.before.device, stage.before.shape[-1]
        width = inputs(slice(0, 1)).shape[-1]
        fitted, held_out = (NormalEquations(width, hidden, device, bias) for _ in range(2))
        for chunk in stage.chunks:
            weights = token_weights(wide(stage.target[chunk]), self.weighting, self.first)
            a, y = wide(inputs(chunk)), wide(targets(chunk))
            if self.exact:
                a, y = a.double(), y.double()
            of_fit = self.fitted(chunk, device)
            for sums, part in ((fitted, of_fit), (held_out, ~of_fit)):
                if bool(part.any()):
                    sums.add(a[part].flatten(0, 1), y[part].flatten(0, 1), weights[part].flatten())
        self.group.all_reduce(*fitted.tensors(), *held_out.tensors())
        return fitted, held_out

    def fit(self, stage: Stage, inputs: Rows, targets: Rows, linear: Linear) -> Fit:
        """`linear` refitted so that it makes `targets` of `inputs`, its bias too where it has one."""
        fitted, held_out = self.sums(stage, inputs, targets, linear.bias is not None)
        index, kind = stage.place
        if not math.isfinite(sum(float(values.sum()) for sums in (fitted, held_out) for values in sums.tensors())):
            raise InputError(
                f"repair: {kind} of block {index}: its activations hold NaN or infinity; weights that give numbers on"
                " the calibration text are expected"
            )
        try:
            return fit_linear(linear, fitted, held_out if float(held_out.rows) > 0 else fitted, self.ridges)
        except ArithmeticError as error:
            raise InputError(
                f"repair: {kind} of block {index}: {error}; more samples or a larger ridge are expected"
            ) from None
