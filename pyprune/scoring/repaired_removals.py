"""Units that are left out and repaired: what a cheap repair puts in the place of each, fitted in one pass.

With x_pre and x_post the stream before and behind a unit, and M what the sublayer before it added to Y, x_pre = Y + M,
all of the model as it is:

- `linear`: that sublayer adds M T instead of M, with T the least squares of `regression.output_map` for t = x_post.
  That is what repair by `linear` folds into its output projection (ReplaceMe, arXiv 2505.02819).
- `mean-update`: b = mean_t(x_post - x_pre) is added in the unit's place. That is what repair by `mean-update` adds to
  the bias of the projection before it (arXiv 2407.16286).

The pass is layer-major and reads each weight once; in memory are the streams at four neighbouring sublayers. What
nothing stands before is left out without a repair, as there is nothing to fold one into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor

from pyprune.models.blocks import FFN, MHA
from pyprune.models.decoder import Decoder
from pyprune.pruning.layerwise import chunk_of
from pyprune.regression.held_out import fitted_windows
from pyprune.regression.normal_equations import RIDGES, NormalEquations, fit_linear
from pyprune.regression.output_map import folded, identity
from pyprune.regression.states import States
from pyprune.regression.token_weights import token_weights
from pyprune.runtime import sequence
from pyprune.scoring.edits import Edits, edit_of
from pyprune.scoring.layered_decoder import DecoderBlock
from pyprune.scoring.layered_model import BlockPass, RunSublayer
from pyprune.scoring.measurement import Unit
from pyprune.scoring.narrowed import run_of, sublayer_cost
from pyprune.scoring.process_group import ProcessGroup
from pyprune.scoring.removals import present_sublayers, removal_of
from pyprune.scoring.replacements import AddedMean, Replacement, tensors_digest

FORMS = ("linear", "mean-update")
BOUNDARIES = 4
"""The stream is needed where the sublayer before a unit begins, at the unit, and behind each of its two sublayers."""


@dataclass(frozen=True, eq=False)
class MappedOutput:
    """A sublayer of the model with T' `[hidden, hidden]` folded into its output projection, which is done when its
    block comes and let go behind it. `sizes`: the sublayer, weights or not."""

    transposed: Tensor
    sizes: MHA | FFN

    def on(self, block: BlockPass) -> RunSublayer:
        on_decoder = cast(DecoderBlock, block)
        if isinstance(self.sizes, MHA):
            mha = cast(MHA, on_decoder.block.mha)
            return run_of(replace(mha, o=folded(mha.o, self.transposed)), on_decoder)
        ffn = cast(FFN, on_decoder.block.ffn)
        return run_of(replace(ffn, down=folded(ffn.down, self.transposed)), on_decoder)

    def multiplications(self, tokens: int) -> int | None:
        return sublayer_cost(self.sizes, tokens)

    def held_bytes(self) -> int:
        """The map and the projection before and after it, in float64."""
        projection = self.sizes.o if isinstance(self.sizes, MHA) else self.sizes.down
        return 8 * (self.transposed.numel() + 2 * projection.weight.numel())

    def digest(self) -> str | None:
        return tensors_digest("mapped output", [("map", self.transposed)])


@dataclass(frozen=True)
class RepairedRemovals:
    """The edits that leave each unit out and repair what it did, and what stands in sublayers' places by the edit."""

    edits: dict[Unit, Edits]
    replacements: dict[int, Replacement]


def repaired_removals(
    decoder: Decoder,
    input_ids: Tensor,
    mask: Tensor | None,
    units: Iterable[Unit],
    form: str,
    group: ProcessGroup,
    *,
    memory: int | None = None,
    advance: Callable[[], None] = lambda: None,
) -> RepairedRemovals:
    """Each of `units`, (kind, original index), left out and repaired as fitted on the windows `input_ids [S, T]`.

    mask: bool `[S, T]` or None. form: one of FORMS; "linear" takes at least two windows, of which every eighth, or of
    fewer than eight the last, chooses the ridge. group: rank 0's fits are everybody's, to the bit. memory: bytes for
    streams, those beyond lie in a temporary file. advance: called behind each sublayer.
    """
    units = list(units)
    fits = fitted_repairs(decoder, input_ids, mask, units, form, memory, advance)
    fits = _of_rank_zero(fits, decoder, units, form, group)
    places = sorted(present_sublayers(decoder))
    sizes = [
        sublayer for block in decoder.sizes().blocks for sublayer in (block.mha, block.ffn) if sublayer is not None
    ]
    edits: dict[Unit, Edits] = {}
    replacements: dict[int, Replacement] = {}
    for number, unit in enumerate(units, start=1):
        removal = removal_of(decoder, [unit])
        edits[unit] = removal
        if unit not in fits:
            continue
        first = _span(places, removal)[0]
        repaired = places[first] if form == "mean-update" else places[first - 1]
        edit = edit_of(repaired, number)
        edits[unit] = removal - {repaired} | {edit}
        fit = fits[unit]
        replacements[edit] = AddedMean(fit) if form == "mean-update" else MappedOutput(fit, sizes[first - 1])
    return RepairedRemovals(edits, replacements)


def _of_rank_zero(
    fits: dict[Unit, Tensor], decoder: Decoder, units: Sequence[Unit], form: str, group: ProcessGroup
) -> dict[Unit, Tensor]:
    """Rank 0's fits, which are this process's but for rounding and what rounding decides."""
    fitted = torch.tensor([unit in fits for unit in units])
    group.broadcast(fitted)
    shape = (decoder.hidden_size,) * (1 if form == "mean-update" else 2)
    result = {}
    for unit in [unit for unit, is_fitted in zip(units, fitted.tolist(), strict=True) if is_fitted]:
        result[unit] = fits[unit] if unit in fits else torch.zeros(shape, device=decoder.device)
        group.broadcast(result[unit])
    return result


@torch.no_grad()
def fitted_repairs(
    decoder: Decoder,
    input_ids: Tensor,
    mask: Tensor | None,
    units: Sequence[Unit],
    form: str,
    memory: int | None = None,
    advance: Callable[[], None] = lambda: None,
) -> dict[Unit, Tensor]:
    """By unit b `[hidden]` or T' `[hidden, hidden]`, float32; without those that nothing stands before, and maps that
    the held-out windows do not want."""
    samples, tokens = input_ids.shape
    ending = _by_last_place(decoder, units)
    states = States(sequence.activation_dtype(decoder), decoder.device, memory)
    streams = [states.empty(samples, tokens, decoder.hidden_size) for _ in range(BOUNDARIES)]
    step = chunk_of(decoder.sizes(), tokens)
    chunks = [slice(start, min(start + step, samples)) for start in range(0, samples, step)]
    if mask is not None:
        mask = mask.to(decoder.device)
    around = _Around(chunks, mask, fitted_windows(samples) if form == "linear" else [])
    rotation = decoder.rope.tables(tokens, prompt=tokens)
    for chunk in chunks:
        streams[0][chunk] = sequence.embed(decoder, input_ids[chunk])
    fits: dict[Unit, Tensor] = {}
    place = 0
    for block in decoder.blocks:
        for sublayer in (block.mha, block.ffn):
            if sublayer is None:
                continue
            before, behind = streams[place % BOUNDARIES], streams[(place + 1) % BOUNDARIES]
            for chunk in chunks:
                seen = None if mask is None else mask[chunk]
                if isinstance(sublayer, MHA):
                    behind[chunk] = sequence.add_mha(sublayer, before[chunk], *rotation, decoder.eps, seen)
                else:
                    behind[chunk] = sequence.add_ffn(sublayer, before[chunk], decoder.eps)
            for unit, first in ending.get(place, {}).items():
                pre = streams[first % BOUNDARIES]
                if form == "mean-update":
                    fits[unit] = around.mean_update(pre, behind)
                elif (fit := around.output_map(streams[(first - 1) % BOUNDARIES], pre, behind)) is not None:
                    fits[unit] = fit
            place += 1
            advance()
    return fits


@dataclass(frozen=True)
class _Around:
    """Fits from the streams `[S, T, hidden]` around a unit. `fitted`: of each window whether it is, or chooses."""

    chunks: Sequence[slice]
    mask: Tensor | None
    fitted: Sequence[bool] = field(default_factory=list)

    def mean_update(self, pre: Tensor, post: Tensor) -> Tensor:
        """b; each token that is not padding counts once."""
        total = torch.zeros(pre.shape[-1], dtype=torch.float64, device=pre.device)
        count = 0
        for chunk in self.chunks:
            missing = post[chunk].double() - pre[chunk].double()
            if self.mask is not None:
                missing = missing[self.mask[chunk]]
            total += missing.flatten(0, -2).sum(0)
            count += missing[..., 0].numel()
        return (total / count).float()

    def output_map(self, before: Tensor, pre: Tensor, post: Tensor) -> Tensor | None:
        """T'; None where no ridge errs less than the identity on the windows that choose."""
        hidden, device = pre.shape[-1], pre.device
        fitted, held_out = (NormalEquations(hidden, hidden, device) for _ in range(2))
        for chunk in self.chunks:
            start, target = before[chunk].float(), post[chunk].float()
            weights = token_weights(target, "relative", 1.0, None if self.mask is None else self.mask[chunk])
            moved, wished = pre[chunk].float() - start, target - start
            is_fitted = torch.tensor(self.fitted[chunk], device=device)
            for sums, part in ((fitted, is_fitted), (held_out, ~is_fitted)):
                if bool(part.any()):
                    sums.add(moved[part].flatten(0, 1), wished[part].flatten(0, 1), weights[part].flatten())
        try:
            fit = fit_linear(identity(hidden, device), fitted, held_out, RIDGES)
        except ArithmeticError:  # what it adds is not a number, which the scores will say
            return None
        return None if fit.ridge is None else fit.linear.weight.float()


def _by_last_place(decoder: Decoder, units: Iterable[Unit]) -> Mapping[int, dict[Unit, int]]:
    """By a unit's last sublayer its first, both counted among those present; without units that begin the model."""
    places = sorted(present_sublayers(decoder))
    ending: dict[int, dict[Unit, int]] = {}
    for unit in units:
        first, last = _span(places, removal_of(decoder, [unit]))
        if first > 0:
            ending.setdefault(last, {})[unit] = first
    return ending


def _span(places: Sequence[int], removal: Edits) -> tuple[int, int]:
    """The first and the last of the present sublayers that a unit's removal takes."""
    taken = [position for position, sublayer in enumerate(places) if sublayer in removal]
    return taken[0], taken[-1]
