"""Gates: how much the loss would move if a head were turned down (Michel et al. 2019, "Are Sixteen Heads Really Better
than One?", section 4.1).

A gate of 1 stands on the output of each query head; a head scores the mean over the calibration samples of
|dL/d gate|, L the sample's mean negative log-likelihood, and a KV group the sum of its heads. An FFN neuron scores the
same with a gate on its activation, so that one importance serves both kinds.

`local`: each block keeps the same share. `global`: as in the paper, the lowest of all blocks go, after each block's
scores were divided by their l2 norm; groups and neurons are ranked apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.models.decoder import Decoder
from pyprune.progress import Progress
from pyprune.pruning.importance import Importance, Kept, by_group
from pyprune.pruning.method import Method, Selection, Style, Task, cpu64
from pyprune.runtime.differentiable import BATCH_TOKENS, block_gradients


def importance(decoder: Decoder, calibration: Tensor, progress: Progress = lambda done, total: None) -> Importance:
    """The mean over samples of |dL/d gate|, of query heads summed by KV group, and of neurons."""
    samples, tokens = calibration.shape
    groups: dict[int, Tensor] = {}
    neurons: dict[int, Tensor] = {}
    done = 0
    for part in calibration.split(max(1, BATCH_TOKENS // tokens)):
        for gradients in block_gradients(decoder, part, scale=1 / (tokens - 1), requires_grad=lambda name: False):
            index, mha = gradients.block.index, gradients.block.mha
            if mha is not None:
                heads = cpu64(gradients.channels["mha"]).view(len(part), mha.heads, mha.head_dim).sum(2).abs().sum(0)
                groups[index] = groups.get(index, 0) + by_group(heads, mha).sum(1) / samples
            if gradients.block.ffn is not None:
                neurons[index] = neurons.get(index, 0) + cpu64(gradients.channels["ffn"]).abs().sum(0) / samples
        done += len(part)
        progress(done, samples)
    return Importance(groups, neurons)


def keep(task: Task, importance: Importance) -> Kept:
    if "local" in task.options:
        return task.within_blocks(importance)
    normed = Importance(
        {index: torch.nn.functional.normalize(scores, dim=0) for index, scores in importance.groups.items()},
        {index: torch.nn.functional.normalize(scores, dim=0) for index, scores in importance.neurons.items()},
    )
    return task.across_blocks(normed, removed_groups=task.groups_to_remove())


def select(task: Task) -> Selection:
    return Selection(keep(task, importance(task.decoder, task.ids(), task.progress)))


METHOD = Method(
    select,
    keep,
    options=(("local", "global"),),
    least_tokens=2,
    removes_groups=lambda options: "global" in options,
    label="Head-gate",
    style=Style("#F0E442", "*"),
    padded_style=Style("#117733", "H"),
)
