"""Block-wise distillation: each block that stays is fitted to the original's stream by local gradient steps.

Block by block in order, with x the stream of the model repaired so far, f the block and t the original's stream behind
the block and all that was removed after it, Adam lowers

    mean_t |f(x) - t|^2 / |t|^2

over all weights of the block (`local_steps`). A gradient goes through one block only. Source: the local losses of
FitNets (Romero et al. 2015) and of block-wise distillation (arXiv 1911.13053), with the student's own stream as input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyprune.models.decoder import Block, Decoder
from pyprune.progress import Progress
from pyprune.pruning.layerwise import chunk_of
from pyprune.recovery.journal import RepairJournal, block_tensors, with_tensors
from pyprune.recovery.lineage import equal_blocks
from pyprune.recovery.local_steps import Steps, dtype_for_steps, fit_blocks
from pyprune.regression.states import States
from pyprune.runtime import differentiable, sequence

BLOCKWISE_STEPS = Steps(count=100, rate=5e-4)


@dataclass(frozen=True)
class BlockFit:
    """The loss of some blocks on the held-out windows, before and after."""

    blocks: tuple[int, ...]
    before: float
    after: float


def blockwise(
    original: Decoder,
    pruned: Decoder,
    input_ids: Tensor,
    steps: Steps = BLOCKWISE_STEPS,
    memory: int | None = None,
    journal: RepairJournal | None = None,
    name: str = "blockwise",
    progress: Progress = lambda done, total: None,
) -> tuple[Decoder, list[BlockFit]]:
    """The pruned model with its blocks fitted in order, from the first that differs or has something removed behind.

    `pruned` may have been repaired before. journal: keeps each block under `name`.
    """
    samples, tokens = input_ids.shape
    states = States(sequence.activation_dtype(original), original.device, memory)
    teacher, student = (states.empty(samples, tokens, original.hidden_size) for _ in range(2))
    dtype = dtype_for_steps(student)
    size = chunk_of(original.sizes(), tokens)
    chunks = [slice(start, min(start + size, samples)) for start in range(0, samples, size)]
    rotation = original.rope.tables(tokens, prompt=tokens)
    with torch.inference_mode():
        for chunk in chunks:
            teacher[chunk] = student[chunk] = sequence.embed(original, input_ids[chunk])
    kept = {block.index: block for block in pruned.blocks}
    indices = [block.index for block in original.sizes().blocks]
    result: list[Block] = []
    fits: list[BlockFit] = []
    same, waiting = True, None

    def loss(of: Sequence[Block], chosen: Sequence[int]) -> Tensor:
        output = differentiable.run_block(of[0], student[list(chosen)].to(dtype), *rotation, original.eps)
        return relative_error(output, teacher[list(chosen)].to(dtype))

    def resolved(block: Block) -> None:
        key = f"{name}.block-{block.index}"
        entry = None if journal is None else journal.get(key)
        if entry is None:
            (finished,), before, after = fit_blocks([block], (samples, tokens), dtype, steps, loss)
            if journal is not None:
                journal.put(key, block_tensors([finished]), {"before": before, "after": after})
        else:
            (finished,) = with_tensors([block], entry[0])
            before, after = entry[1]["before"], entry[1]["after"]
        result.append(finished)
        fits.append(BlockFit((block.index,), before, after))
        with torch.inference_mode():
            for chunk in chunks:
                student[chunk] = sequence.run_block(finished, student[chunk], *rotation, original.eps)

    for place, block in enumerate(original.blocks):
        is_kept = block.index in kept
        if is_kept and waiting is not None:
            resolved(waiting)
            waiting = None
        if same:
            same = is_kept and all(index in kept for index in indices[place + 1 :][:1])
            same = same and equal_blocks(block, kept[block.index], pruned.dtype)
        if is_kept:
            if same:
                result.append(kept[block.index])
            else:
                waiting = kept[block.index]
        with torch.inference_mode():
            for chunk in chunks:
                teacher[chunk] = sequence.run_block(block, teacher[chunk], *rotation, original.eps)
                if same:
                    student[chunk] = teacher[chunk]
        progress(place, len(indices))
    if waiting is not None:
        resolved(waiting)
    progress(len(indices), len(indices))
    return replace(pruned, blocks=tuple(result)), fits


def relative_error(output: Tensor, target: Tensor) -> Tensor:
    """mean over tokens of |output - target|^2 / |target|^2."""
    square = target.square().sum(-1)
    return ((output - target).square().sum(-1) / square.clamp(min=torch.finfo(square.dtype).tiny)).mean()
