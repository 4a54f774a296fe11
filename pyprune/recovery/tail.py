"""Tail distillation: the last blocks that stay are fitted to the original's predictions.

With x the repaired model's stream before its last blocks f, t the original's stream behind its last block, and
p(h) = softmax(W RMSNorm(h) + b) the model's final norm and head, which stay, Adam lowers

    mean over positions of KL(p(t) || p(f(x)))

over all weights of the last blocks together (`local_steps`). A gradient goes through these and the head only; what
stands before them is run once. A local error of the stream counts every direction alike; this one counts what reaches
the predictions, and the last blocks can make up for errors that came from before. Blocks at the front that both models
have alike are run once for both. A step sees few tokens: in the same time, many small steps win back more than few
large ones. Source: the objective is knowledge distillation's (Hinton et al. 2015, at temperature 1); to fit the last
layers of a depth-pruned model alone is what "Reassessing Layer Pruning in LLMs" found to serve well, there by training
on text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyprune.models.decoder import Block, Decoder
from pyprune.ops.reference import rms_norm
from pyprune.progress import Progress
from pyprune.pruning.layerwise import chunk_of
from pyprune.recovery.blockwise import BlockFit
from pyprune.recovery.journal import RepairJournal, block_tensors, with_tensors
from pyprune.recovery.lineage import equal_prefix
from pyprune.recovery.local_steps import Moments, Steps, dtype_for_steps, fit_blocks
from pyprune.regression.states import States
from pyprune.runtime import differentiable, sequence
from pyprune.runtime.memory import available

TAIL_STEPS = Steps(count=400, rate=3e-4, tokens=256)
TAIL_BLOCKS = 16
COPIES = 4
"""Of each weight in float32 while the steps are made: itself, its gradient, and Adam's moments."""
HEAD_ROWS = 128
"""Rows whose logits are in memory together."""


@dataclass(frozen=True)
class Head:
    """What turns the last state into logits: final norm and bias of the steps' dtype, weight `[vocab, hidden]` of the
    dtype that its products are made in."""

    norm: Tensor
    weight: Tensor
    bias: Tensor | None
    eps: float

    def logits(self, normed: Tensor) -> Tensor:
        """Of states `[rows, hidden]` behind the norm, in their dtype."""
        product = F.linear(normed.to(self.weight.dtype), self.weight).to(normed.dtype)
        return product if self.bias is None else product.add_(self.bias)

    def slope(self, of_logits: Tensor) -> Tensor:
        """The gradient in the states behind the norm, of that in the logits."""
        return (of_logits.to(self.weight.dtype) @ self.weight).to(of_logits.dtype)


def tail(
    original: Decoder,
    pruned: Decoder,
    input_ids: Tensor,
    steps: Steps = TAIL_STEPS,
    blocks: int = TAIL_BLOCKS,
    memory: int | None = None,
    journal: RepairJournal | None = None,
    name: str = "tail",
    progress: Progress = lambda done, total: None,
) -> tuple[Decoder, list[BlockFit]]:
    """The pruned model with its last `blocks` blocks (all, where it has fewer) fitted to the original's predictions.

    `pruned` may have been repaired before. The `BlockFit` has the divergence on the held-out windows, in nats.
    journal: keeps the blocks under `name`, and every 50 steps Adam's state.
    """
    samples, tokens = input_ids.shape
    states = States(sequence.activation_dtype(original), original.device, memory)
    rotation = original.rope.tables(tokens, prompt=tokens)
    size = chunk_of(original.sizes(), tokens)
    chunks = [slice(start, min(start + size, samples)) for start in range(0, samples, size)]
    kept = list(pruned.blocks)
    fixed, last = kept[:-blocks], kept[-blocks:]
    entry = None if journal is None else journal.get(name)
    if entry is not None:
        fitted = with_tensors(last, entry[0])
        fit = BlockFit(tuple(block.index for block in last), entry[1]["before"], entry[1]["after"])
        return replace(pruned, blocks=(*fixed, *fitted)), [fit]

    shared = 0
    if pruned.dtype == original.dtype:  # and so nothing is rounded
        shared = equal_prefix(original, replace(pruned, blocks=tuple(fixed)))
    passes, total = 0, len(original.sizes().blocks) + len(fixed) - shared + steps.count
    teacher, student = (states.empty(samples, tokens, original.hidden_size) for _ in range(2))

    def run(blocks: Sequence[Block], x: Tensor) -> None:
        nonlocal passes
        for block in blocks:
            for chunk in chunks:
                x[chunk] = sequence.run_block(block, x[chunk], *rotation, original.eps)
            passes += 1
            progress(passes, total)

    with torch.inference_mode():
        for chunk in chunks:
            teacher[chunk] = sequence.embed(original, input_ids[chunk])
        run(original.blocks[:shared], teacher)
        for chunk in chunks:
            student[chunk] = teacher[chunk]
        run(original.blocks[shared:], teacher)
        run(fixed[shared:], student)
    dtype = dtype_for_steps(student)
    bias = None if original.head.bias is None else original.head.bias.to(dtype)
    of_products = torch.bfloat16 if steps.precision == "bf16" else dtype
    head = Head(original.norm.to(dtype), original.head.weight.to(of_products), bias, original.eps)

    def loss(of: Sequence[Block], chosen: Sequence[int]) -> Tensor:
        x, t = student[list(chosen)].to(dtype), teacher[list(chosen)].to(dtype)
        for block in of:
            x = differentiable.run_block(block, x, *rotation, original.eps)
        return divergence(x.flatten(0, 1), t.flatten(0, 1), head)

    def keep(moments: Moments) -> None:
        if journal is not None:
            parts = {"weight": moments.weights, "first": moments.first, "second": moments.second}
            tensors = {f"{part}.{place}": t for part, ts in parts.items() for place, t in enumerate(ts)}
            journal.put(f"{name}.steps", tensors, {"step": moments.step})

    def interrupted() -> Moments | None:
        resumed = None if journal is None else journal.get(f"{name}.steps")
        if resumed is None:
            return None
        count = len(resumed[0]) // 3
        listed = ([resumed[0][f"{part}.{place}"] for place in range(count)] for part in ("weight", "first", "second"))
        return Moments(resumed[1]["step"], *listed)

    fitted, before, after = fit_blocks(
        last, (samples, tokens), dtype, steps, loss, interrupted(), keep, lambda done: progress(passes + done, total)
    )
    if journal is not None:
        journal.put(name, block_tensors(fitted), {"before": before, "after": after})
        journal.drop(f"{name}.steps")
    progress(total, total)
    fit = BlockFit(tuple(block.index for block in last), before, after)
    return replace(pruned, blocks=(*fixed, *fitted)), [fit]


def last_that_fit(blocks: Sequence[Block], device: torch.device) -> int:
    """TAIL_BLOCKS, or as many of the last blocks as a third of the free memory holds meanwhile; at least 1."""
    free = available(device)
    left = 1 << 62 if free is None else free // 3
    count = 0
    for block in reversed(blocks[-TAIL_BLOCKS:]):
        left -= block.parameters() * COPIES * torch.float32.itemsize
        if left < 0:
            break
        count += 1
    return max(1, count)


def divergence(student: Tensor, teacher: Tensor, head: Head) -> Tensor:
    """mean over rows of KL(p(teacher) || p(student)) in nats, of last states `[rows, hidden]`, differentiable in
    `student`. Logits of HEAD_ROWS rows are in memory at a time."""
    return _Divergence.apply(student, teacher, head)


class _Divergence(torch.autograd.Function):
    """The gradient in the student's logits is p(student) - p(teacher); it is taken through the head on the way."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, head: Head) -> Tensor:
        total = student.new_zeros((), dtype=torch.float64)
        needs_slope = ctx.needs_input_grad[0]
        slope = torch.empty_like(student) if needs_slope else student.new_empty(0)
        for place in range(0, len(student), HEAD_ROWS):
            rows = slice(place, place + HEAD_ROWS)
            wished = F.log_softmax(head.logits(rms_norm(teacher[rows], head.norm, head.eps)), -1)
            with torch.set_grad_enabled(needs_slope):
                states = student[rows].detach().requires_grad_(needs_slope)
                normed = rms_norm(states, head.norm, head.eps)
            reached = F.log_softmax(head.logits(normed.detach()), -1)
            probability = wished.exp()
            total += (probability * (wished - reached)).sum(dtype=torch.float64)
            if needs_slope:
                error = reached.exp_().sub_(probability).div_(len(student))
                slope[rows] = torch.autograd.grad(normed, states, head.slope(error))[0]
        ctx.save_for_backward(slope)
        return (total / len(student)).to(student.dtype)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * slopes[0], None, None
