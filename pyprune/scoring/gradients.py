"""The loss over all calibration samples differentiated a block at a time, some samples at a time.

All samples go down the blocks together, last block first, each in its own backward pass (`block_gradients`): what a
criterion adds up over samples is complete for one block before the next one begins, so gradients of more than one
block are never in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyprune.models.load_any import AnyDecoder
from pyprune.models.transformers_decoder import TransformersDecoder
from pyprune.runtime import memory
from pyprune.runtime.differentiable import HEAD_ROWS, BlockGradients, block_gradients
from pyprune.scoring.footprint import FIXED
from pyprune.scoring.layer_gradients import layer_gradients
from pyprune.scoring.layered_transformers import LayeredTransformers

ROWS = 1280
"""Rows whose activations are in memory together in a backward pass (one sample, where that is longer)."""


@dataclass(frozen=True)
class Batch:
    """Samples `[N, T]` that are differentiated together: `scale` times their negative log-likelihood, summed over the
    `positions` that they predict."""

    input_ids: Tensor
    mask: Tensor | None
    scale: float
    positions: int


def make_batches(
    input_ids: Tensor, mask: Tensor | None, group: int, scale: Callable[[int], float], limit: int | None = None
) -> list[Batch]:
    """Samples in groups of `group`, each scaled by `scale` of the positions that its group predicts, in batches of up
    to `limit` samples (as many as ROWS holds when None). Samples that predict nothing are left out."""
    limit = limit or max(1, ROWS // input_ids.shape[1])
    positions = predicted_positions(input_ids, mask)
    predicting = positions.nonzero().flatten().tolist()
    batches = []
    for start in range(0, len(input_ids), group):
        members = [sample for sample in predicting if start <= sample < start + group]
        if not members:
            continue
        group_scale = scale(int(positions[members].sum()))
        for first in range(0, len(members), limit):
            samples = members[first : first + limit]
            batch_mask = None if mask is None else mask[samples]
            batches.append(Batch(input_ids[samples], batch_mask, group_scale, int(positions[samples].sum())))
    return batches


def predicted_positions(input_ids: Tensor, mask: Tensor | None) -> Tensor:
    """How many tokens of each sample are predicted, int64 `[S]`."""
    if mask is None:
        return torch.full((len(input_ids),), input_ids.shape[1] - 1)
    return (mask[:, 1:] & mask[:, :-1]).sum(1).cpu()


def per_block(
    decoder: AnyDecoder, batches: list[Batch], requires_grad: Callable[[str], bool]
) -> Iterator[Iterator[BlockGradients]]:
    """For each block, last first, its gradients in every batch's backward pass.

    requires_grad: whether the weight of a name gets a gradient; a batch's are gone when the next one is asked for.
    InputError when it will not fit in the memory that is free.
    """
    needed = needed_bytes(decoder, batches, requires_grad)
    memory.require(needed, decoder.device, f"gradients of {decoder.name}", "fewer or shorter samples need less")
    backward_passes = [_backward_pass(decoder, batch, requires_grad) for batch in batches]
    for _ in decoder.sizes().blocks:
        yield _next_block(backward_passes)


def _backward_pass(decoder: AnyDecoder, batch: Batch, requires_grad: Callable[[str], bool]) -> Iterator[BlockGradients]:
    if isinstance(decoder, TransformersDecoder):
        return layer_gradients(decoder, batch.input_ids, batch.mask, scale=batch.scale, requires_grad=requires_grad)
    return block_gradients(decoder, batch.input_ids, batch.mask, scale=batch.scale, requires_grad=requires_grad)


def _next_block(backward_passes: list[Iterator[BlockGradients]]) -> Iterator[BlockGradients]:
    for backward_pass in backward_passes:
        gradients = next(backward_pass)
        yield gradients
        gradients.weights.clear()  # the pass that waits for the next block would hold them


def needed_bytes(decoder: AnyDecoder, batches: list[Batch], requires_grad: Callable[[str], bool]) -> int:
    """About what the backward passes take beyond the model: a state a block, one block's weights and gradients, one
    batch's activations and its logits."""
    size = 8 if decoder.dtype == torch.float64 else 4
    samples, tokens = sum(len(batch.input_ids) for batch in batches), batches[0].input_ids.shape[1]
    rows = max(len(batch.input_ids) for batch in batches) * tokens
    blocks = decoder.sizes().blocks
    states = (len(blocks) + 6) * samples * tokens * decoder.hidden_size * size
    # Widened weights; then the sum of the gradients, those of one batch, and their product with the weights.
    copies = 4 if any(requires_grad(name) for name, _ in blocks[0].tensors()) else 1
    gradients = copies * max(sum(t.numel() for _, t in block.tensors()) for block in blocks) * size
    if isinstance(decoder, TransformersDecoder):
        # Twice what a forward pass holds of a row, for its gradients, and its states in float64.
        row = 3 * LayeredTransformers(decoder).row_bytes(tokens, True) + 4 * decoder.hidden_size * 8
        return states + gradients + rows * row + 4 * HEAD_ROWS * decoder.vocab_size * size + FIXED
    widest = max(
        max(0 if block.ffn is None else 6 * block.ffn.width,
            0 if block.mha is None else block.mha.heads * (6 * block.mha.head_dim + 3 * tokens))
        for block in blocks
    )  # fmt: skip
    # The last term: what criteria make of states and slopes in float64.
    activations = rows * ((widest + 8 * decoder.hidden_size) * size + 4 * decoder.hidden_size * 8)
    head = (4 * HEAD_ROWS * decoder.vocab_size + decoder.head.weight.numel() * (size != decoder.dtype.itemsize)) * size
    return states + gradients + activations + head + FIXED
