"""How little a unit changes the residual stream: distances between a token's state before and behind it.

    Block Influence      1 - cos(x, y)              ShortGPT (Men et al. 2024)
    angular distance     arccos(cos(x, y)) / pi     Gromov et al. 2024
    relative magnitude   |y - x| / |y| or / |x|     y - x is the unit's update f(x)

averaged over all tokens that are not padding, or taken at each sample's last one. One forward pass scores all units.

Some published programs deviate from these formulas; the variants compute what those programs do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyprune.checks import is_int
from pyprune.errors import InputError
from pyprune.models.load_any import AnyDecoder, as_any_decoder
from pyprune.progress import Progress
from pyprune.runtime import memory as device_memory
from pyprune.scoring.as_layered import as_layered
from pyprune.scoring.footprint import ROWS, pass_bytes
from pyprune.scoring.layered_model import BlockPass, SamplesPass
from pyprune.scoring.measurement import Measurement, Unit
from pyprune.scoring.perplexity import check_samples
from pyprune.scoring.progress import StepProgress
from pyprune.scoring.removals import UNIT_KINDS, units_of

Distance = Callable[[Tensor, Tensor], Tensor]
"""Of states before and behind, `[N, T, hidden]` float64, token by token: `[N, T]`."""


def block_influence(
    decoder: AnyDecoder,
    input_ids: Tensor,
    mask: Tensor | None,
    unit: str,
    *,
    tokens: str = "mean",
    variant: str = "corrected",
    batch: int = 10,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Block Influence, 1 - cos(x, y).

    tokens: "mean" over all that are not padding, or the "last" of each sample. variant "faithful", as ShortGPT's code:
    the sum over all tokens, padding too, and the last block's output taken behind the final norm. "optipfair", as
    OptiPFair's: the mean over the tokens of each batch of `batch` samples, then over batches, so that a token of a
    batch with more padding counts more.
    """
    if variant == "faithful":
        weights = token_weights(input_ids, None, "mean")
        sums = _unit_sums(decoder, input_ids, mask, unit, shortgpt_distance, weights, memory, progress, final_norm=True)
        return Measurement({candidate: float(by_sample.sum()) for candidate, by_sample in sums.items()})
    weights = token_weights(input_ids, mask, tokens)
    sums = _unit_sums(decoder, input_ids, mask, unit, cosine_distance, weights, memory, progress)
    return Measurement(_unit_means(sums, weights, batch if variant == "optipfair" else len(input_ids)))


def angular(
    decoder: AnyDecoder,
    input_ids: Tensor,
    mask: Tensor | None,
    unit: str,
    *,
    tokens: str = "mean",
    variant: str = "corrected",
    memory: int | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Angular distance, arccos(cos(x, y)) / pi.

    tokens: the "mean" over all that are not padding, or the "last" of each sample, as Gromov et al. have it. variant
    "faithful", as PruneMe's code (which takes the last token): the last block's output taken behind the final norm, and
    the embedding no state to start from, so that the first block can never go: it scores infinity.
    """
    faithful = variant == "faithful"
    weights = token_weights(input_ids, mask, tokens)
    sums = _unit_sums(decoder, input_ids, mask, unit, angular_distance, weights, memory, progress, final_norm=faithful)
    values = _unit_means(sums, weights, len(input_ids))
    if faithful:
        values["block", decoder.sizes().blocks[0].index] = math.inf
    return Measurement(values)


def relative_magnitude(
    decoder: AnyDecoder,
    input_ids: Tensor,
    mask: Tensor | None,
    unit: str,
    *,
    tokens: str = "mean",
    over: str = "output",
    memory: int | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """The size of the unit's update beside the stream's: |f(x)| / |x + f(x)|, or |f(x)| / |x| over the "input"."""
    weights = token_weights(input_ids, mask, tokens)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return (y - x).norm(dim=-1) / (y if over == "output" else x).norm(dim=-1)

    sums = _unit_sums(decoder, input_ids, mask, unit, distance, weights, memory, progress)
    return Measurement(_unit_means(sums, weights, len(input_ids)))


def window_distances(
    model: Any,
    input_ids: Tensor,
    size: int,
    attention_mask: Tensor | None = None,
    *,
    distance: str = "angular",
    tokens: str = "mean",
    variant: str = "corrected",
    memory: int | None = None,
    progress: Progress | None = None,
) -> dict[int, float]:
    """The distance over each window of `size` consecutive blocks, by the original index of its first block.

    The window of the smallest distance is what Gromov et al. remove. distance: "angular" or "block-influence"; tokens
    as there. variant "faithful": for "angular" PruneMe's (see `angular`: no window starts at the first block); for
    "block-influence" LLM-Drop's consecutive mode, which reads the column of windows one block longer than it removes
    and averages over padding too; a window without such a neighbour scores infinity.
    InputError for a size that leaves no block, and as in `score`.
    Source: Gromov et al. 2024, section 3, algorithm 1.
    """
    decoder = as_any_decoder(model)
    input_ids, mask = check_samples(decoder, input_ids, attention_mask)
    indices = [block.index for block in decoder.sizes().blocks]
    for name, value, accepted in (
        ("distance", distance, tuple(_DISTANCES)),
        ("tokens", tokens, ("mean", "last")),
        ("variant", variant, ("corrected", "faithful")),
    ):
        if value not in accepted:
            raise InputError(f"{name}: {value!r} given; {', '.join(accepted)} are accepted")
    if not is_int(size) or not 1 <= size < len(indices):
        raise InputError(f"size: {size!r} given; 1 to {len(indices) - 1} blocks of {decoder.name} can go together")
    pruneme, llm_drop = (variant == "faithful" and distance == name for name in _DISTANCES)
    weights = token_weights(input_ids, None if llm_drop else mask, "last" if pruneme else tokens)
    length = size + 1 if llm_drop else size
    sums = _window_sums(decoder, input_ids, mask, length, _DISTANCES[distance], weights, memory, progress, pruneme)
    distances = {
        indices[first]: mean_of_means(sums[first], weights.sum(1), len(input_ids)) if first in sums else math.inf
        for first in range(len(indices) - size + 1)
    }
    if pruneme:
        distances[indices[0]] = math.inf
    return distances


def cosine_distance(x: Tensor, y: Tensor) -> Tensor:
    """1 - cos(x, y)."""
    return 1 - _cosine(x, y)


def angular_distance(x: Tensor, y: Tensor) -> Tensor:
    """arccos(cos(x, y)) / pi, from 0 to 1."""
    return _cosine(x, y).clamp(-1, 1).arccos() / math.pi


def shortgpt_distance(x: Tensor, y: Tensor) -> Tensor:
    """1 - cos(x, y), where a zero state counts as a cosine of 0.5."""
    return 1 - ((x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))).nan_to_num(nan=0.5)


_DISTANCES: dict[str, Distance] = {"angular": angular_distance, "block-influence": cosine_distance}


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    tiny = torch.finfo(x.dtype).tiny
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1)).clamp(min=tiny)


def token_weights(input_ids: Tensor, mask: Tensor | None, tokens: str) -> Tensor:
    """Which tokens count, float64 `[S, T]` of 0 and 1: all that are not padding ("mean"), or each sample's "last"."""
    counted = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask
    if tokens == "last":
        numbers = torch.arange(1, counted.shape[1] + 1, device=counted.device)
        last = (counted * numbers).amax(1, keepdim=True)  # 0 for a sample that is all padding
        counted = numbers == last
    return counted.double().cpu()


def mean_of_means(sums: Tensor, counts: Tensor, batch: int) -> float:
    """The mean over batches of `batch` samples of sums / counts, both `[S]`; batches that count nothing left out."""
    totals = torch.stack([part.sum() for part in sums.split(batch)])
    weights = torch.stack([part.sum() for part in counts.split(batch)])
    counting = weights > 0
    return float((totals[counting] / weights[counting]).mean())


def _unit_means(sums: dict[Unit, Tensor], weights: Tensor, batch: int) -> dict[Unit, float]:
    """`mean_of_means` of each unit, over the tokens of `weights [S, T]`."""
    return {candidate: mean_of_means(by_sample, weights.sum(1), batch) for candidate, by_sample in sums.items()}


@torch.inference_mode()
def _unit_sums(
    decoder: AnyDecoder,
    input_ids: Tensor,
    mask: Tensor | None,
    unit: str,
    distance: Distance,
    weights: Tensor,
    memory: int | None,
    progress: Progress | None,
    final_norm: bool = False,
) -> dict[Unit, Tensor]:
    """For each unit of the ranking the weighted sum of its tokens' distances, a sample each: float64 `[S]`.

    final_norm: the last block's output is taken behind the final norm.
    """
    run = _Forward(decoder, input_ids, mask, 1, memory)
    steps = StepProgress(progress, len(decoder.blocks) * len(run.parts))
    last, units = len(decoder.blocks) - 1, units_of(decoder, unit)
    sums: dict[Unit, Tensor] = {}
    for samples in run.parts:
        on_samples, x = run.start(samples)
        for position, block in enumerate(on_samples.blocks(0)):
            for chunk, before, between, behind in run.sublayers(block, x, samples):
                states = {"block": (before, behind), "mha": (before, between), "ffn": (between, behind)}
                for kind in UNIT_KINDS[unit]:
                    if (kind, block.index) not in units:
                        continue
                    start, end = states[kind]
                    if final_norm and position == last:
                        end = on_samples.final(end)
                    by_sample = sums.setdefault((kind, block.index), weights.new_zeros(len(input_ids)))
                    by_sample[chunk] = _weighted_sum(distance, start, end, weights[chunk])
            steps.advance()
    return sums


@torch.inference_mode()
def _window_sums(
    decoder: AnyDecoder,
    input_ids: Tensor,
    mask: Tensor | None,
    length: int,
    distance: Distance,
    weights: Tensor,
    memory: int | None,
    progress: Progress | None,
    final_norm: bool,
) -> dict[int, Tensor]:
    """As `_unit_sums`, over each window of `length` blocks, by the position of its first block."""
    run = _Forward(decoder, input_ids, mask, length + 1, memory)
    steps = StepProgress(progress, len(decoder.blocks) * len(run.parts))
    blocks = len(decoder.blocks)
    sums: dict[int, Tensor] = {}
    for samples in run.parts:
        on_samples, x = run.start(samples)
        states = deque([x.clone()], maxlen=length + 1)  # before the last `length` blocks and behind them
        for position, block in enumerate(on_samples.blocks(0)):
            for _ in run.sublayers(block, x, samples):
                pass
            normed = final_norm and position == blocks - 1
            states.append(on_samples.final(x) if normed else x.clone())
            if len(states) == length + 1:
                by_sample = sums.setdefault(position + 1 - length, weights.new_zeros(len(input_ids)))
                by_sample[samples] = torch.cat(
                    [
                        _weighted_sum(distance, start[None], end[None], weight[None])
                        for start, end, weight in zip(states[0], states[-1], weights[samples], strict=True)
                    ]
                )
            steps.advance()
    return sums


def _weighted_sum(distance: Distance, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """The sum over each sample's tokens that count: `[N]`. Tokens that do not may hold anything, NaN too."""
    distances = distance(x.double(), y.double()).cpu()
    return torch.where(weights > 0, distances * weights, 0).sum(1)


class _Forward:
    """One pass of all samples through the blocks, in as many parts as memory asks for.

    slots: how many states of a part are in memory together. memory: bytes beyond the model, what is free when None.
    """

    def __init__(
        self, decoder: AnyDecoder, input_ids: Tensor, mask: Tensor | None, slots: int, memory: int | None
    ) -> None:
        samples, tokens = input_ids.shape
        rows, layered = ROWS.get(decoder.device.type, ROWS["cuda"]), as_layered(decoder)
        limit = device_memory.available(decoder.device) if memory is None else memory

        def needed(part: int, rows: int) -> int:
            distances = min(max(rows, tokens), part * tokens) * decoder.hidden_size * (4 * 8 + 2 * 4)
            return pass_bytes(layered, slots, part, tokens, rows, mask is not None) + distances

        part = samples
        while limit is not None and needed(part, rows) > limit:
            if part > 1:
                part = -(-part // 2)
            elif rows > tokens:
                rows = tokens
            else:
                raise InputError(
                    f"memory: {limit >> 20} MiB given; one sample of {tokens} tokens of {decoder.name} needs"
                    f" {(needed(1, tokens) >> 20) + 1} MiB beyond the model"
                )
        self.parts = [slice(start, min(start + part, samples)) for start in range(0, samples, part)]
        self._model, self._ids, self._mask = layered, input_ids, mask
        self._chunk_samples = max(1, rows // tokens)

    def start(self, samples: slice) -> tuple[SamplesPass, Tensor]:
        """The model on these samples, and their embedding `[N, T, hidden]`."""
        mask = None if self._mask is None else self._mask[samples]
        ids, model = self._ids[samples], self._model
        on_samples = model.on(ids, mask)
        states = torch.empty(*ids.shape, model.hidden_size, dtype=model.state_dtype, device=model.device)
        on_samples.embed(states)
        return on_samples, states

    def sublayers(self, block: BlockPass, x: Tensor, samples: slice) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Run x, the states of these samples, through a block in place, a chunk at a time: which of all samples, and
        their states before the block, between its sublayers and behind it."""
        runs = [block.sublayer(offset) for offset in range(2)]
        for first in range(samples.start, samples.stop, self._chunk_samples):
            chunk = slice(first, min(first + self._chunk_samples, samples.stop))
            members = range(chunk.start - samples.start, chunk.stop - samples.start)
            states = x[members.start : members.stop]
            before = between = states.clone()
            if runs[0] is not None:
                between = runs[0](before, members)
            behind = between if runs[1] is None else runs[1](between, members)
            states.copy_(behind)
            yield chunk, before, between, behind
