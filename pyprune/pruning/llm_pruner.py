"""LLM-Pruner: a Taylor estimate of what the loss loses with a coupled structure (Ma et al. 2023, section 3.2).

With g the gradient of the mean loss over the N calibration samples, g_n that of sample n, and S = W * g elementwise,
a row i of q, k, v, gate and up (a column of o and down) scores

    vectorize: |sum_j S_ij|              param_first: sum_j |S_ij|
    param_second: sum_j W_ij^2 H_ij      param_mix: sum_j |S_ij - W_ij^2 H_ij / 2|,     H = sum_n g_n^2 / N.

A coupled structure sums over its rows and columns: a KV group has the rows of its query heads in q, of its KV head in k
and v, and its query heads' columns of o; a neuron its rows of gate and up and its column of down.

`local`: each block that is not protected keeps the same share; `global`: the lowest of all go. The first eighth and the
last sixteenth of the blocks are protected, as 4 and 2 of 32.

`faithful`: where there are fewer KV than query heads, the published code adds channel c of q and o to channel c modulo
the number of KV channels, so that a query head counts for a KV head that it does not read. `corrected`: for its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor

from pyprune.models.decoder import MHA, Block, Decoder
from pyprune.progress import Progress
from pyprune.pruning.importance import Importance, Kept, by_group
from pyprune.pruning.method import Method, Selection, Style, Task, cpu64
from pyprune.runtime.differentiable import BATCH_TOKENS, block_gradients

VARIANTS = ("param_first", "vectorize", "param_second", "param_mix")
ROWS, COLUMNS = ("mha.q", "mha.k", "mha.v", "ffn.gate", "ffn.up"), ("mha.o", "ffn.down")
_WEIGHTS = frozenset(f"{name}.weight" for name in (*ROWS, *COLUMNS))


class GradientSums:
    """Sums over samples, block index and weight -> a tensor of its shape: `first` of the gradients, `second` of their
    squares. The widest part of what the method holds: the weights of the blocks in float32, once or twice."""

    def __init__(self, first: bool, second: bool) -> None:
        self.first: dict[tuple[int, str], Tensor] | None = {} if first else None
        self.second: dict[tuple[int, str], Tensor] | None = {} if second else None

    def add(self, index: int, weights: dict[str, Tensor]) -> None:
        for name, gradient in weights.items():
            if self.second is not None:
                square = self.second.get((index, name))
                if square is None:
                    self.second[index, name] = gradient.square()
                else:
                    square.addcmul_(gradient, gradient)
            if self.first is not None:
                sum_ = self.first.get((index, name))
                if sum_ is None:
                    self.first[index, name] = gradient
                else:
                    sum_.add_(gradient)

    def pop(self, index: int, name: str) -> tuple[Tensor | None, Tensor | None]:
        """Both sums of one weight, which are then forgotten."""
        first, second = (None if sums is None else sums.pop((index, name)) for sums in (self.first, self.second))
        return first, second


def gradients(
    decoder: Decoder, calibration: Tensor, variant: str, progress: Progress = lambda done, total: None
) -> GradientSums:
    """Sums over the calibration samples, each by a backward pass one block at a time."""
    samples, tokens = calibration.shape
    sums = GradientSums(first=variant != "param_second", second=variant in ("param_second", "param_mix"))
    # Squares are of single samples; a sum of gradients may take several together.
    size = 1 if sums.second is not None else max(1, BATCH_TOKENS // tokens)
    done = 0
    for part in calibration.split(size):
        for block_gradient in block_gradients(
            decoder, part, scale=1 / (tokens - 1), requires_grad=_WEIGHTS.__contains__
        ):
            sums.add(block_gradient.block.index, block_gradient.weights)
        done += len(part)
        progress(done, samples)
    return sums


def salience(weight: Tensor, first: Tensor | None, second: Tensor | None, samples: int, variant: str) -> Tensor:
    """The salience of each weight, before its row or column is summed; the shape of `weight`. `first` and `second`:
    sums over the samples; they are overwritten."""
    weight = weight.detach().to(torch.float32) if weight.dtype != torch.float64 else weight.detach()
    if variant == "param_second":
        assert second is not None
        return second.mul_(weight).mul_(weight).div_(samples)
    assert first is not None
    result = first.mul_(weight).div_(samples)
    if variant == "param_mix":
        assert second is not None
        result.sub_(second.mul_(weight).mul_(weight), alpha=0.5 / samples)
    return result


def row_scores(saliences: Tensor, dim: int, variant: str) -> Tensor:
    """The sum over `dim` of |salience|, or for `vectorize` |the sum|: float64."""
    if variant == "vectorize":
        return cpu64(saliences.sum(dim, dtype=torch.float64)).abs()
    return cpu64(saliences.abs_().sum(dim, dtype=torch.float64))


def importance(
    decoder: Decoder,
    calibration: Tensor,
    variant: str = "param_first",
    *,
    faithful: bool = False,
    progress: Progress = lambda done, total: None,
) -> Importance:
    """Scores of KV groups and neurons."""
    sums = gradients(decoder, calibration, variant, progress)

    def scores(block: Block, names: tuple[str, ...]) -> Iterator[Tensor]:
        weights = dict(block.tensors())
        for name in names:
            weight = weights[f"{name}.weight"]
            saliences = salience(weight, *sums.pop(block.index, f"{name}.weight"), len(calibration), variant)
            yield row_scores(saliences, 0 if name in COLUMNS else 1, variant)

    groups, neurons = {}, {}
    for block in decoder.blocks:
        if block.mha is not None:
            channels = scores(block, ("mha.q", "mha.k", "mha.v", "mha.o"))
            groups[block.index] = reduce(torch.add, (_group_scores(linear, block.mha, faithful) for linear in channels))
        if block.ffn is not None:
            neurons[block.index] = reduce(torch.add, scores(block, ("ffn.gate", "ffn.up", "ffn.down")))
    return Importance(groups, neurons)


def _group_scores(channels: Tensor, mha: MHA, faithful: bool) -> Tensor:
    if faithful:  # folded onto the KV channels, whichever head they belong to
        channels = channels.view(-1, mha.kv_heads * mha.head_dim).sum(0)
    return by_group(channels, mha).sum(1)


def protected(blocks: int) -> str:
    """An eighth at the front and a sixteenth at the end, to the nearest: 4 and 2 of 32."""
    return f"first={int(blocks / 8 + 0.5)},last={int(blocks / 16 + 0.5)}"


def keep(task: Task, importance: Importance) -> Kept:
    return task.across_blocks(importance) if "global" in task.options else task.within_blocks(importance)


def select(task: Task) -> Selection:
    variant, faithful = task.option(*VARIANTS), "faithful" in task.options
    scores = importance(task.decoder, task.ids(), variant, faithful=faithful, progress=task.progress)
    return Selection(keep(task, scores))


METHOD = Method(
    select,
    keep,
    options=(VARIANTS, ("local", "global"), ("corrected", "faithful")),
    least_tokens=2,
    protect=protected,
    label="LLM-Pruner",
    style=Style("#56B4E9", "P"),
    padded_style=Style("#332288", "p"),
)
