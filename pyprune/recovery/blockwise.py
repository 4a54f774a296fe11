"""Block-wise distillation: each block that stays is fitted to the original's stream by local gradient steps.

Block by block in order, with x the stream of the model repaired so far, f the block and t the original's stream behind
the block and all that was removed after it, Adam lowers

    mean_t |f(x) - t|^2 / |t|^2

over all weights of the block. A gradient goes through one block only. The rate rises over ten steps and then falls in a
line to zero. A block that errs no less on the held-out windows afterwards stays as it was. Source: the local losses of
FitNets (Romero et al. 2015) and of block-wise distillation (arXiv 1911.13053), with the student's own stream as input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyprune.models.decoder import Block, Decoder
from pyprune.progress import Progress
from pyprune.pruning.layerwise import chunk_of
from pyprune.recovery.fitting import is_held_out
from pyprune.recovery.journal import BlockJournal
from pyprune.recovery.states import States
from pyprune.recovery.streams import equal
from pyprune.runtime import differentiable, sequence

WARM_UP = 10


@dataclass(frozen=True)
class Training:
    """steps: of each block; rate: Adam's highest; tokens: about how many a step sees; seed: of the order of samples."""

    steps: int = 200
    rate: float = 5e-4
    tokens: int = 1024
    seed: int = 0


@dataclass(frozen=True)
class BlockFit:
    """One block's relative squared error on the held-out windows, before and after."""

    block: int
    before: float
    after: float


def blockwise(
    original: Decoder,
    pruned: Decoder,
    input_ids: Tensor,
    training: Training,
    memory: int | None = None,
    journal: BlockJournal | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[Decoder, list[BlockFit]]:
    """The pruned model with its blocks fitted in order, from the first that differs or has something removed behind."""
    samples, tokens = input_ids.shape
    states = States(sequence.activation_dtype(original), original.device, memory)
    teacher, student = (states.empty(samples, tokens, original.hidden_size) for _ in range(2))
    step = chunk_of(original.sizes(), tokens)
    chunks = [slice(start, min(start + step, samples)) for start in range(0, samples, step)]
    rotation = original.rope.tables(tokens, prompt=tokens)
    with torch.inference_mode():
        for chunk in chunks:
            teacher[chunk] = student[chunk] = sequence.embed(original, input_ids[chunk])
    kept = {block.index: block for block in pruned.blocks}
    indices = [block.index for block in original.sizes().blocks]
    result: list[Block] = []
    fits: list[BlockFit] = []
    same, waiting = True, None

    def resolved(block: Block) -> None:
        finished = None if journal is None else journal.get(block)
        if finished is None:
            finished, fit = _fitted(block, student, teacher, rotation, original.eps, training)
            if journal is not None:
                journal.put(finished, {"before": fit.before, "after": fit.after})
        else:
            fit = BlockFit(block.index, **journal.errors(block))  # type: ignore[union-attr]  # it had the block
        result.append(finished)
        fits.append(fit)
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
            same = same and _equal(block, kept[block.index], pruned.dtype)
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


def _fitted(
    block: Block,
    student: Tensor,
    teacher: Tensor,
    rotation: tuple[Tensor, Tensor],
    eps: float,
    training: Training,
) -> tuple[Block, BlockFit]:
    samples, tokens = student.shape[:2]
    fitting = [sample for sample in range(samples) if not is_held_out(sample)]
    held_out = [sample for sample in range(samples) if is_held_out(sample)]
    batch = max(1, training.tokens // tokens)
    parameters: list[Tensor] = []
    dtypes: dict[int, torch.dtype] = {}

    def leaf(tensor: Tensor) -> Tensor:
        parameters.append(tensor.detach().to(student.dtype, copy=True).requires_grad_())
        dtypes[id(parameters[-1])] = tensor.dtype
        return parameters[-1]

    wide = block.map(leaf)
    optimizer = torch.optim.Adam(parameters, lr=training.rate, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(training.seed)

    def error(of: Block, chosen: list[int]) -> Tensor:
        output = differentiable.run_block(of, student[chosen], *rotation, eps)
        return relative_error(output, teacher[chosen])

    def held_out_error(of: Block) -> float:
        of = of.map(lambda tensor: tensor.to(student.dtype))
        with torch.no_grad():
            parts = [held_out[start : start + batch] for start in range(0, len(held_out), batch)]
            return sum(float(error(of, part)) * len(part) for part in parts) / len(held_out)

    before = held_out_error(block)
    order: list[int] = []
    for step in range(training.steps):
        if len(order) < batch:
            order += [fitting[place] for place in torch.randperm(len(fitting), generator=generator).tolist()]
        chosen, order = order[:batch], order[batch:]
        rate = training.rate * min(1.0, (step + 1) / WARM_UP) * (1 - step / training.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        with torch.enable_grad():
            error(wide, chosen).backward()
        optimizer.step()
    trained = wide.map(lambda tensor: tensor.detach().to(dtypes[id(tensor)]))
    after = held_out_error(trained)
    if not after < before:
        return block, BlockFit(block.index, before, before)
    return trained, BlockFit(block.index, before, after)


def _equal(block: Block, other: Block, dtype: torch.dtype) -> bool:
    pairs = ((block.mha, other.mha), (block.ffn, other.ffn))
    return all(
        sublayer is counterpart
        or (sublayer is not None and counterpart is not None and equal(sublayer, counterpart, dtype))
        for sublayer, counterpart in pairs
    )
