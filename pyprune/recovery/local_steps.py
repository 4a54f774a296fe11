"""Local gradient steps: some blocks lower a loss of their own, on states that are there already.

Adam, no weight decay; the rate rises over ten steps and then falls in a line to zero. Which samples a step sees follows
from the seed alone. Blocks that err no less on the held-out windows afterwards, rounded to their own dtype, stay as
they were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyprune.models.decoder import Block, Decoder
from pyprune.ops import native
from pyprune.regression.held_out import HELD_OUT_EVERY, is_held_out, judging

WARM_UP = 10
PRECISIONS = ("fp32", "bf16")

Loss = Callable[[Sequence[Block], Sequence[int]], Tensor]
"""The mean loss of blocks on some samples, by their numbers."""


@dataclass(frozen=True)
class Steps:
    """count: steps; rate: Adam's highest; tokens: about how many a step sees; seed: of the order of samples; precision:
    of the matrix products, "fp32" or "bf16". Weights and Adam's moments are never in 16 bits."""

    count: int
    rate: float
    tokens: int = 1024
    seed: int = 0
    precision: str = "fp32"

    def batch(self, seq_len: int) -> int:
        """Samples of `seq_len` tokens that a step sees."""
        return max(1, self.tokens // seq_len)

    def windows(self, seq_len: int, samples: int) -> int:
        """How many of `samples` windows the steps need: what they see, and what is held out among these."""
        seen = self.count * self.batch(seq_len)
        groups = -(-seen // (HELD_OUT_EVERY - 1))  # each with a window that is held out
        return min(samples, groups * HELD_OUT_EVERY)

    def rate_at(self, step: int) -> float:
        """The rate of step 0 .. count - 1."""
        return self.rate * min(1.0, (step + 1) / WARM_UP) * (1 - step / self.count)

    def products(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Around a forward pass: its matrix products, and those of the gradients, in `precision`."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(device.type, torch.bfloat16)

    def samples(self, fitting: Sequence[int], batch: int) -> list[list[int]]:
        """The samples of each step: a new order of `fitting` whenever it has been gone through."""
        generator = torch.Generator().manual_seed(self.seed)
        order: list[int] = []
        chosen = []
        for _ in range(self.count):
            if len(order) < batch:
                order += [fitting[place] for place in torch.randperm(len(fitting), generator=generator).tolist()]
            chosen.append(order[:batch])
            order = order[batch:]
        return chosen


@dataclass(frozen=True)
class Moments:
    """Adam between two steps: how many were made, the float weights, and the two moments of each."""

    step: int
    weights: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]


def fit_blocks(
    blocks: Sequence[Block],
    shape: tuple[int, int],
    dtype: torch.dtype,
    steps: Steps,
    loss: Loss,
    resume: Moments | None = None,
    keep: Callable[[Moments], None] | None = None,
    progress: Callable[[int], None] = lambda done: None,
    every: int = 50,
) -> tuple[list[Block], float, float]:
    """The blocks after the steps (or as they were), and their loss on the held-out windows before and after.

    shape: samples and tokens; dtype: of the weights while they are fitted (`dtype_for_steps`). resume: go on from
    there. keep: called with what `resume` takes, each `every` steps. progress: called with the steps that are done.
    """
    samples, tokens = shape
    fitting = [sample for sample in range(samples) if not is_held_out(sample)]
    held_out = judging(samples, tokens)
    batch = steps.batch(tokens)
    device = next(tensor for _, tensor in blocks[0].tensors()).device
    weights: list[Tensor] = []
    dtypes: dict[int, torch.dtype] = {}

    def leaf(tensor: Tensor) -> Tensor:
        weights.append(tensor.detach().to(dtype, copy=True).requires_grad_())
        dtypes[id(weights[-1])] = tensor.dtype
        return weights[-1]

    def held_out_loss(of: Sequence[Block]) -> float:
        wide = [block.map(lambda tensor: tensor.to(dtype)) for block in of]
        with torch.no_grad(), steps.products(device):
            parts = [held_out[start : start + batch] for start in range(0, len(held_out), batch)]
            return sum(float(loss(wide, part)) * len(part) for part in parts) / len(held_out)

    wide = [block.map(leaf) for block in blocks]
    optimizer = torch.optim.Adam(weights, lr=steps.rate, betas=(0.9, 0.95), fused=True)
    first = 0
    if resume is not None:
        _restore(optimizer, weights, resume)
        first, resume = resume.step, None  # its copies go
    before = held_out_loss(blocks)
    chosen = steps.samples(fitting, batch)
    for step in range(first, steps.count):
        for group in optimizer.param_groups:
            group["lr"] = steps.rate_at(step)
        optimizer.zero_grad()
        with torch.enable_grad(), steps.products(device):
            error = loss(wide, chosen[step])
        error.backward()
        optimizer.step()
        progress(step + 1)
        if keep is not None and (step + 1) % every == 0 and step + 1 < steps.count:
            keep(_moments(optimizer, weights, step + 1))
    optimizer.zero_grad()
    del optimizer  # its moments and the gradients are as large as two or three times the weights
    fitted = [block.map(lambda tensor: tensor.detach().to(dtypes[id(tensor)])) for block in wide]
    after = held_out_loss(fitted)
    return (fitted, before, after) if after < before else (list(blocks), before, before)


def default_precision(model: Decoder) -> str:
    """bf16 on a device that multiplies bfloat16, else fp32; never bf16 for a model of float64."""
    is_fast = model.device.type != "cpu" or native.multiplies_bfloat16()
    return "bf16" if is_fast and model.dtype != torch.float64 else "fp32"


def dtype_for_steps(states: Tensor) -> torch.dtype:
    """float32, or float64 where the states have it: steps would be lost in 16 bits."""
    return torch.promote_types(states.dtype, torch.float32)


def _moments(optimizer: torch.optim.Adam, weights: Sequence[Tensor], step: int) -> Moments:
    states = [optimizer.state[weight] for weight in weights]
    return Moments(
        step, [w.detach() for w in weights], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
    )


def _restore(optimizer: torch.optim.Adam, weights: Sequence[Tensor], moments: Moments) -> None:
    with torch.no_grad():
        for weight, value, first, second in zip(weights, moments.weights, moments.first, moments.second, strict=True):
            weight.copy_(value)
            optimizer.state[weight] = {
                "step": torch.tensor(float(moments.step), device=weight.device),
                "exp_avg": first.to(weight, copy=True),
                "exp_avg_sq": second.to(weight, copy=True),
            }
