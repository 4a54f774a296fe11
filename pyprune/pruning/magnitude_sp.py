"""Magnitude-sp: the norm of each input channel of o and down, summed over structures (FLAP's baseline of that name).

A channel j of the o or down projection W scores ||W_j||_2 over its column; a KV group scores the sum of its heads'
channels. No calibration. Each block keeps the same share.
"""

from __future__ import annotations

from pyprune.models.decoder import Decoder
from pyprune.pruning.importance import Importance, by_group
from pyprune.pruning.method import Method, Selection, Style, Task, cpu64


def importance(decoder: Decoder) -> Importance:
    """||W_j||_2 of the columns of o, summed by KV group, and of down."""
    groups, neurons = {}, {}
    for block in decoder.blocks:
        if block.mha is not None:
            channels = cpu64(block.mha.o.weight).norm(dim=0)
            groups[block.index] = by_group(channels, block.mha).sum(1)
        if block.ffn is not None:
            neurons[block.index] = cpu64(block.ffn.down.weight).norm(dim=0)
    return Importance(groups, neurons)


def select(task: Task) -> Selection:
    return Selection(task.within_blocks(importance(task.decoder)))


METHOD = Method(
    select,
    Task.within_blocks,
    calibrated=False,
    label="Magnitude-sp",
    style=Style("#E69F00", "X"),
    padded_style=Style("#999933", ">"),
)
