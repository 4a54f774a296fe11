"""Wanda-sp: weight magnitude times input norm, summed over structures (a width baseline of Shortened LLaMA).

A channel j of the input x of the o or down projection W scores

    s_j = mean_i |W_ij| * ||x_j||_2,

the norm over all calibration tokens; a KV group scores the sum of its heads' channels. Each block keeps the same share,
and its pruned output is what the next block's norms are taken from.

`faithful`: the code it was published with (FLAP's `prune_wanda_sp`) makes a buffer of 2048 samples, fills 128 of them
and runs over all, so that every norm also holds the answers to samples of zeros. Without biases those are zeros, and
nothing changes but the scale; with biases on q, k, v or gate and up they are not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.models.decoder import Block, Decoder, Linear
from pyprune.progress import Progress
from pyprune.pruning.apply import narrow_ffn, narrow_mha
from pyprune.pruning.importance import Kept, by_group
from pyprune.pruning.layerwise import Layerwise
from pyprune.pruning.method import Method, Selection, Style, Task, cpu64
from pyprune.pruning.selection import highest

BUFFER = 2048
"""Samples that the published code runs over, however few there are."""


def select_layerwise(
    decoder: Decoder,
    calibration: Tensor,
    sizes: dict[int, tuple[int, int]],
    zeros: int = 0,
    progress: Progress = lambda done, total: None,
) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Block index -> the positions of the KV groups, and of the neurons, that stay.

    `sizes`: block index -> how many of each stay; all where it has none. `zeros`: how many samples of zeros go along.
    """
    layerwise = Layerwise(decoder, calibration, zeros=min(zeros, 1))
    samples = len(calibration)
    groups: dict[int, list[int]] = {}
    neurons: dict[int, list[int]] = {}
    for done, block in enumerate(decoder.blocks, start=1):
        # Both norms belong to the unpruned block, as in FLAP's prune_wanda_sp: one forward gathers the inputs of o and
        # of down, then both sublayers are pruned, and only the next block sees the pruned output.
        context, activation = Norm(), Norm()
        for sample, (into_o, into_down) in enumerate(layerwise.inputs(block)):
            weight = 1 if sample < samples else zeros  # one sample of zeros stands for all of them
            context.add(into_o, weight)
            activation.add(into_down, weight)
        mha, ffn = block.mha, block.ffn
        kept_groups, kept_width = sizes.get(block.index, (None, None))
        if mha is not None:
            scores = by_group(channel_scores(mha.o, context.value()), mha).sum(1)
            groups[block.index] = highest(scores, mha.kv_heads if kept_groups is None else kept_groups)
            mha = narrow_mha(mha, groups[block.index])
        if ffn is not None:
            scores = channel_scores(ffn.down, activation.value())
            neurons[block.index] = highest(scores, ffn.width if kept_width is None else kept_width)
            ffn = narrow_ffn(ffn, neurons[block.index])
        layerwise.advance(Block(block.index, mha, ffn))
        progress(done, len(decoder.blocks))
    return groups, neurons


def channel_scores(linear: Linear, norms: Tensor) -> Tensor:
    """`mean_i |W_ij| * ||x_j||_2` for each input channel: float64 `[in_features]`."""
    return linear.weight.detach().abs().mean(dim=0, dtype=torch.float64).to(norms.device) * norms


class Norm:
    """The l2 norm of each channel over all tokens seen, accumulated in float64."""

    def __init__(self) -> None:
        self.squares: Tensor | float = 0.0

    def add(self, x: Tensor | None, weight: int = 1) -> None:
        """x: `[tokens, channels]`, seen `weight` times; None adds nothing."""
        # One sample at a time goes to float64, so that a chunk is never held twice.
        if x is not None:
            self.squares = self.squares + weight * x.double().square().sum(0)

    def value(self) -> Tensor:
        return cpu64(torch.as_tensor(self.squares)).sqrt()


def select(task: Task) -> Selection:
    ids = task.ids()
    zeros = max(0, BUFFER - len(ids)) if "faithful" in task.options else 0
    return Selection(Kept(*select_layerwise(task.decoder, ids, task.quotas(), zeros, task.progress)))


METHOD = Method(
    select,
    Task.within_blocks,
    options=(("corrected", "faithful"),),
    label="Wanda-sp",
    style=Style("#D55E00", "^"),
    padded_style=Style("#009E73", "D"),
)
