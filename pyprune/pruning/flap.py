"""FLAP: how much the input of o and down fluctuates (An et al. 2024, "Fluctuation-based Adaptive Structured Pruning").

For channel j of the input x of the o or down projection W, over all calibration tokens of the unpruned model:

    IFV_j  = Var(x_j),    WIFV_j = Var(x_j) * sum_i W_ij^2,    WIFN_j = mean_i |W_ij| * rms(x_j).

`AL-AM`, the default: within each block and each kind the channels are made z-scores, a KV group is the mean of its
channels', and the groups and neurons of all blocks are ranked together. `AL-MM`: groups and neurons are ranked over all
blocks, but apart, and `remove_groups` KV groups go. `UL-UM`: every block keeps the same share, a group scoring the sum
of its channels. `UL-MM`: so too, but `remove_groups` over the number of blocks go in each.

What is taken away is replaced by its mean: o and down get the bias W x_mean over the channels that go (`bias`;
`no-bias` leaves that out).

`faithful` follows the published code where it departs from this. (1) Its mean of the inputs is updated in place, so
that the running variance takes the new mean for the old, the first sample adds nothing, and the weights of the others
are (n-1)/n and 1/(n+1). (2) It squares the attention's metric before anything else. (3) In AL-AM it keeps what lies
strictly above the score at the cut, not the unit that the cut fell on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pyprune.models.decoder import Block, Decoder, Linear
from pyprune.progress import Progress
from pyprune.pruning.importance import Importance, Kept, by_group
from pyprune.pruning.layerwise import Layerwise
from pyprune.pruning.method import Method, Selection, Style, Task, cpu64

METRICS = ("WIFV", "IFV", "WIFN")
STRUCTURES = ("AL-AM", "AL-MM", "UL-UM", "UL-MM")


class ChannelStatistics:
    """Mean, variance and mean square of each input channel over the samples seen, float64. All samples have the same
    number of tokens."""

    def __init__(self) -> None:
        self.samples = self.tokens = 0
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0
        self._deviations: Tensor | float = 0.0
        self._faithful: Tensor | float = 0.0

    def add(self, x: Tensor | None) -> None:
        """x: `[tokens, channels]` of one more sample."""
        if x is None:
            return
        x = x.double()
        n, old_mean = self.samples, self.mean
        self.mean = old_mean * (n / (n + 1)) + x.mean(0) / (n + 1)
        self.squares = self.squares + x.square().sum(0)
        # Welford: the sum over all tokens of (x - mean)^2, whatever has been seen.
        self._deviations = self._deviations + ((x - old_mean) * (x - self.mean)).sum(0)
        if n:  # the published update: the old mean is the same tensor as the mean, and has been updated with it
            self._faithful = self._faithful * ((n - 1) / n) + (x - self.mean).square().sum(0) / (n + 1)
        self.samples, self.tokens = n + 1, self.tokens + len(x)

    def variance(self, faithful: bool = False) -> Tensor:
        """Over all tokens; `faithful`: the value that the published code computes for it."""
        if faithful:
            return cpu64(torch.as_tensor(self._faithful).expand_as(torch.as_tensor(self.mean)))
        return cpu64(torch.as_tensor(self._deviations)) / max(1, self.tokens - 1)

    def rms(self) -> Tensor:
        return cpu64(torch.as_tensor(self.squares) / self.tokens).sqrt()


def channel_scores(metric: str, linear: Linear, statistics: ChannelStatistics, faithful: bool = False) -> Tensor:
    """The metric of each input channel of a projection: float64 `[in_features]`."""
    weight = cpu64(linear.weight)
    if metric == "WIFN":
        return weight.abs().mean(0) * statistics.rms()
    return statistics.variance(faithful) * (weight.square().sum(0) if metric == "WIFV" else 1.0)


def z_scores(scores: Tensor) -> Tensor:
    """(s - mean) / standard deviation; zeros where all are equal."""
    spread = scores.std() if len(scores) > 1 else scores.new_zeros(())
    return (scores - scores.mean()) / spread if spread > 0 else torch.zeros_like(scores)


def statistics(
    decoder: Decoder, calibration: Tensor, progress: Progress = lambda done, total: None
) -> dict[int, tuple[ChannelStatistics, ChannelStatistics]]:
    """Block index -> the inputs of o and of down, every block fed the unpruned output of the one before."""
    layerwise = Layerwise(decoder, calibration)
    result = {}
    for done, block in enumerate(decoder.blocks, start=1):
        context, activation = ChannelStatistics(), ChannelStatistics()
        for into_o, into_down in layerwise.inputs(block, forward=True):
            context.add(into_o)
            activation.add(into_down)
        result[block.index] = context, activation
        progress(done, len(decoder.blocks))
    return result


def importance(
    decoder: Decoder,
    inputs: Mapping[int, tuple[ChannelStatistics, ChannelStatistics]],
    metric: str = "WIFV",
    *,
    adaptive: bool = True,
    faithful: bool = False,
) -> Importance:
    """Scores of KV groups and neurons; `adaptive`: comparable across blocks, as AL-AM and AL-MM have it."""
    groups, neurons = {}, {}
    standardize: Callable[[Tensor], Tensor] = z_scores if adaptive else lambda scores: scores
    for block in decoder.blocks:
        context, activation = inputs[block.index]
        if block.mha is not None:
            channels = channel_scores(metric, block.mha.o, context, faithful)
            channels = by_group(standardize(channels.square() if faithful else channels), block.mha)
            groups[block.index] = channels.mean(1) if adaptive else channels.sum(1)
        if block.ffn is not None:
            neurons[block.index] = standardize(channel_scores(metric, block.ffn.down, activation, faithful))
    return Importance(groups, neurons)


def compensation(
    decoder: Decoder, inputs: Mapping[int, tuple[ChannelStatistics, ChannelStatistics]], kept: Kept
) -> dict[str, Tensor]:
    """What o and down get as a bias for the channels that go: W times the mean of their inputs."""
    biases = {}
    for block in decoder.blocks:
        for name, linear, statistics, removed in _removed_channels(block, inputs[block.index], kept):
            if len(removed):
                mean = cpu64(torch.as_tensor(statistics.mean))[removed]
                biases[f"blocks.{block.index}.{name}.bias"] = cpu64(linear.weight)[:, removed] @ mean
    return biases


def _removed_channels(
    block: Block, inputs: tuple[ChannelStatistics, ChannelStatistics], kept: Kept
) -> list[tuple[str, Linear, ChannelStatistics, Tensor]]:
    """Name, projection and input statistics of o and down, with the input channels that go."""
    result = []
    if block.mha is not None:
        channels = by_group(torch.arange(block.mha.heads * block.mha.head_dim), block.mha)
        kept_groups = kept.groups[block.index]
        removed = [group for group in range(block.mha.kv_heads) if group not in kept_groups]
        result.append(("o", block.mha.o, inputs[0], channels[removed].flatten()))
    if block.ffn is not None:
        is_kept = torch.zeros(block.ffn.width, dtype=torch.bool)
        is_kept[kept.neurons[block.index]] = True
        result.append(("down", block.ffn.down, inputs[1], (~is_kept).nonzero().flatten()))
    return result


def keep(task: Task, importance: Importance) -> Kept:
    structure = task.option(*STRUCTURES)
    if structure == "AL-AM":
        return task.across_blocks(importance, strictly_above="faithful" in task.options)
    if structure == "AL-MM":
        return task.across_blocks(importance, removed_groups=task.groups_to_remove())
    return task.within_blocks(importance)


def select(task: Task) -> Selection:
    inputs = statistics(task.decoder, task.ids(), task.progress)
    adaptive, faithful = bool(task.options & {"AL-AM", "AL-MM"}), "faithful" in task.options
    scores = importance(task.decoder, inputs, task.option(*METRICS), adaptive=adaptive, faithful=faithful)
    kept = keep(task, scores)
    if "bias" not in task.options:
        return Selection(kept)
    for _ in range(3):  # a block that loses nothing gets no bias, so a neuron more fits elsewhere
        added = sum(
            linear.weight.shape[0]
            for block in task.decoder.blocks
            for _, linear, _, removed in _removed_channels(block, inputs[block.index], kept)
            if len(removed) and linear.bias is None
        )
        if added == task.added:
            break
        task = replace(task, added=added)
        kept = keep(task, scores)
    return Selection(kept, compensation(task.decoder, inputs, kept))


METHOD = Method(
    select,
    keep,
    options=(METRICS, STRUCTURES, ("bias", "no-bias"), ("corrected", "faithful")),
    adds_biases=lambda options: "bias" in options,
    removes_groups=lambda options: bool(options & {"AL-MM", "UL-MM"}),
    label="FLAP",
    style=Style("#CC79A7", "v"),
    padded_style=Style("#882255", "<"),
)
