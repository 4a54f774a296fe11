"""How little a unit changes the residual stream: distances between a token's state before and behind it.

    Block Influence      1 - cos(x, y)              ShortGPT (Men et al. 2024)
    angular distance     arccos(cos(x, y)) / pi     Gromov et al. 2024
    relative magnitude   |y - x| / |y| or / |x|     y - x is the unit's update f(x)

averaged over all tokens that are not padding, or taken at each sample's last one. One forward pass scores all units.

Some published programs deviate from these formulas; variants compute what they compute.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models import as_decoder
from pyprune.models.decoder import Block, Decoder
from pyprune.ops.reference import rms_norm
from pyprune.runtime import memory as device_memory
from pyprune.runtime.sequence import add_ffn, add_mha, embed
from pyprune.scoring.footprint import ROWS, plan_bytes
from pyprune.scoring.measured import Measured, Progress, Steps, Unit
from pyprune.scoring.perplexity import check_samples
from pyprune.scoring.removals import RANKED

Distance = Callable[[Tensor, Tensor], Tensor]
"""Of states before and behind, `[N, T, hidden]` float64, token by token: `[N, T]`."""


def block_influence(
    decoder: Decoder,
    input_ids: Tensor,
    mask: Tensor | None,
    unit: str,
    *,
    tokens: str = "mean",
    variant: str = "corrected",
    batch: int = 10,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Block Influence, 1 - cos(x, y).

    tokens: "mean" over all that are not padding, or the "last" of each sample. variant "faithful", as ShortGPT's code:
    the sum over all tokens, padding too, and the last block's output taken behind the final norm. "optipfair", as
    OptiPFair's: the mean over the tokens of each batch of `batch` samples, then over batches, so that a token of a
    batch with more padding counts more.
    """
    if variant == "faithful":
        weights = token_weights(input_ids, None, "mean")
        found = _summed(decoder, input_ids, mask, unit, shortgpt_distance, weights, memory, progress, normed=True)
        return Measured({one: float(sums.sum()) for one, sums in found.items()})
    weights = token_weights(input_ids, mask, tokens)
    found = _summed(decoder, input_ids, mask, unit, cosine_distance, weights, memory, progress)
    group = batch if variant == "optipfair" else len(input_ids)
    return Measured({one: mean_of_means(sums, weights.sum(1), group) for one, sums in found.items()})


def angular(
    decoder: Decoder,
    input_ids: Tensor,
    mask: Tensor | None,
    unit: str,
    *,
    tokens: str = "mean",
    variant: str = "corrected",
    memory: int | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Angular distance, arccos(cos(x, y)) / pi.

    tokens: the "mean" over all that are not padding, or the "last" of each sample, as Gromov et al. have it. variant
    "faithful", as PruneMe's code (which takes the last token): the last block's output taken behind the final norm, and
    the embedding no state to start from, so that the first block can never go: it scores infinity.
    """
    faithful = variant == "faithful"
    weights = token_weights(input_ids, mask, tokens)
    found = _summed(decoder, input_ids, mask, unit, angular_distance, weights, memory, progress, normed=faithful)
    values = {one: mean_of_means(sums, weights.sum(1), len(input_ids)) for one, sums in found.items()}
    if faithful:
        values["block", decoder.sizes().blocks[0].index] = math.inf
    return Measured(values)


def relative_magnitude(
    decoder: Decoder,
    input_ids: Tensor,
    mask: Tensor | None,
    unit: str,
    *,
    tokens: str = "mean",
    over: str = "output",
    memory: int | None = None,
    progress: Progress | None = None,
) -> Measured:
    """The size of the unit's update beside the stream's: |f(x)| / |x + f(x)|, or |f(x)| / |x| over the "input"."""
    weights = token_weights(input_ids, mask, tokens)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return (y - x).norm(dim=-1) / (y if over == "output" else x).norm(dim=-1)

    found = _summed(decoder, input_ids, mask, unit, distance, weights, memory, progress)
    return Measured({one: mean_of_means(sums, weights.sum(1), len(input_ids)) for one, sums in found.items()})


def window_distances(
    model: Decoder,
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
    decoder = as_decoder(model)
    input_ids, mask = check_samples(decoder, input_ids, attention_mask)
    places = [block.index for block in decoder.sizes().blocks]
    for name, value, accepted in (
        ("distance", distance, tuple(_DISTANCES)),
        ("tokens", tokens, ("mean", "last")),
        ("variant", variant, ("corrected", "faithful")),
    ):
        if value not in accepted:
            raise InputError(f"{name}: {value!r} given; {', '.join(accepted)} are accepted")
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size < len(places):
        raise InputError(f"size: {size!r} given; 1 to {len(places) - 1} blocks of {decoder.name} can go together")
    pruneme, llm_drop = (variant == "faithful" and distance == name for name in _DISTANCES)
    weights = token_weights(input_ids, None if llm_drop else mask, "last" if pruneme else tokens)
    apart = size + 1 if llm_drop else size
    sums = _window_sums(decoder, input_ids, mask, apart, _DISTANCES[distance], weights, memory, progress, pruneme)
    found = {
        places[first]: mean_of_means(sums[first], weights.sum(1), len(input_ids)) if first in sums else math.inf
        for first in range(len(places) - size + 1)
    }
    if pruneme:
        found[places[0]] = math.inf
    return found


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
    seen = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask
    if tokens == "last":
        places = torch.arange(1, seen.shape[1] + 1, device=seen.device)
        last = (seen * places).amax(1, keepdim=True)  # 0 for a sample that is all padding
        seen = places == last
    return seen.double().cpu()


def mean_of_means(sums: Tensor, counts: Tensor, batch: int) -> float:
    """The mean over batches of `batch` samples of sums / counts, both `[S]`; batches that count nothing left out."""
    totals = torch.stack([part.sum() for part in sums.split(batch)])
    weights = torch.stack([part.sum() for part in counts.split(batch)])
    some = weights > 0
    return float((totals[some] / weights[some]).mean())


@torch.inference_mode()
def _summed(
    decoder: Decoder,
    input_ids: Tensor,
    mask: Tensor | None,
    unit: str,
    distance: Distance,
    weights: Tensor,
    memory: int | None,
    progress: Progress | None,
    normed: bool = False,
) -> dict[Unit, Tensor]:
    """For each unit of the ranking the weighted sum of its tokens' distances, a sample each: float64 `[S]`.

    normed: the last block's output is taken behind the final norm.
    """
    run = _Forward(decoder, input_ids, mask, 1, memory)
    steps = Steps(progress, len(decoder.blocks) * len(run.parts))
    last = len(decoder.blocks) - 1
    sums: dict[Unit, Tensor] = {}
    for samples in run.parts:
        x = run.start(samples)
        for place, block in enumerate(decoder.blocks):
            for part, before, middle, behind in run.halves(block, x, samples):
                ends = {"block": (before, behind), "mha": (before, middle), "ffn": (middle, behind)}
                for kind in RANKED[unit]:
                    if kind != "block" and getattr(block, kind) is None:
                        continue
                    start, end = ends[kind]
                    if normed and place == last:
                        end = rms_norm(end, decoder.norm, decoder.eps)
                    into = sums.setdefault((kind, block.index), weights.new_zeros(len(input_ids)))
                    into[part] = _weighted(distance, start, end, weights[part])
            steps.advance()
    return sums


@torch.inference_mode()
def _window_sums(
    decoder: Decoder,
    input_ids: Tensor,
    mask: Tensor | None,
    apart: int,
    distance: Distance,
    weights: Tensor,
    memory: int | None,
    progress: Progress | None,
    normed: bool,
) -> dict[int, Tensor]:
    """As `_summed` between the states before a block and `apart` blocks later, by the first block's place."""
    run = _Forward(decoder, input_ids, mask, apart + 1, memory)
    steps = Steps(progress, len(decoder.blocks) * len(run.parts))
    blocks = len(decoder.blocks)
    sums: dict[int, Tensor] = {}
    for samples in run.parts:
        x = run.start(samples)
        states = deque([x.clone()], maxlen=apart + 1)  # before the last `apart` blocks and behind them
        for place, block in enumerate(decoder.blocks):
            for _ in run.halves(block, x, samples):
                pass
            states.append(rms_norm(x, decoder.norm, decoder.eps) if normed and place == blocks - 1 else x.clone())
            if len(states) == apart + 1:
                into = sums.setdefault(place + 1 - apart, weights.new_zeros(len(input_ids)))
                into[samples] = torch.cat(
                    [
                        _weighted(distance, one[None], two[None], weight[None])
                        for one, two, weight in zip(states[0], states[-1], weights[samples], strict=True)
                    ]
                )
            steps.advance()
    return sums


def _weighted(distance: Distance, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """The sum over each sample's tokens that count: `[N]`. Tokens that do not may hold anything, NaN too."""
    found = distance(x.double(), y.double()).cpu()
    return torch.where(weights > 0, found * weights, 0).sum(1)


class _Forward:
    """One pass of all samples through the blocks, in as many parts as memory asks for.

    slots: how many states of a part are in memory together. memory: bytes beyond the model, what is free when None.
    """

    def __init__(
        self, decoder: Decoder, input_ids: Tensor, mask: Tensor | None, slots: int, memory: int | None
    ) -> None:
        samples, tokens = input_ids.shape
        rows = ROWS.get(decoder.device.type, ROWS["cuda"])
        limit = device_memory.available(decoder.device) if memory is None else memory

        def needed(together: int, rows: int) -> int:
            wide = min(max(rows, tokens), together * tokens) * decoder.hidden_size * (4 * 8 + 2 * 4)  # the distances
            return plan_bytes(decoder, slots, together, tokens, rows, mask is not None) + wide

        together = samples
        while limit is not None and needed(together, rows) > limit:
            if together > 1:
                together = -(-together // 2)
            elif rows > tokens:
                rows = tokens
            else:
                raise InputError(
                    f"memory: {limit >> 20} MiB given; one sample of {tokens} tokens of {decoder.name} needs"
                    f" {(needed(1, tokens) >> 20) + 1} MiB beyond the model"
                )
        self.parts = [slice(start, min(start + together, samples)) for start in range(0, samples, together)]
        self._decoder, self._ids, self._mask = decoder, input_ids, mask
        self._sequences = max(1, rows // tokens)
        self._cos, self._sin = decoder.rope.tables(tokens, prompt=tokens)

    def start(self, samples: slice) -> Tensor:
        """The embedding of these samples, `[N, T, hidden]`."""
        return embed(self._decoder, self._ids[samples])

    def halves(self, block: Block, x: Tensor, samples: slice) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Run x, the states of these samples, through a block in place, a few at a time: which of all samples, and
        their states before, between its halves and behind."""
        eps = self._decoder.eps
        for first in range(samples.start, samples.stop, self._sequences):
            part = slice(first, min(first + self._sequences, samples.stop))
            own = x[part.start - samples.start : part.stop - samples.start]
            seen = None if self._mask is None else self._mask[part]
            before = own.clone()
            middle = before if block.mha is None else add_mha(block.mha, before, self._cos, self._sin, eps, seen)
            behind = middle if block.ffn is None else add_ffn(block.ffn, middle, eps)
            own.copy_(behind)
            yield part, before, middle, behind
