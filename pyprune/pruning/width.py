"""Width pruning: every block keeps its place and loses KV groups and FFN neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.pruning import wanda_sp
from pyprune.pruning.apply import kept, pad
from pyprune.pruning.budget import UniformSizes, depth_row, width_for
from pyprune.pruning.original import OriginalSizes
from pyprune.pruning.pruning import Pruning, recorded

METHODS: dict[str, Callable[[Decoder, Tensor, int, int], Iterator[wanda_sp.Kept]]] = {"wanda-sp": wanda_sp.select}


def width(
    decoder: Decoder,
    method: str = "wanda-sp",
    *,
    ratio: float | None = None,
    target_parameters: int | None = None,
    calibration: Tensor | None = None,
    align: int | None = None,
) -> Pruning:
    """The pruning that narrows every block of `decoder` alike, in the original model's indices.

    Exactly one of `ratio` (share of the decoder's parameters; the target is then the parameter count of the
    depth-pruned model of that ratio) and `target_parameters`. `calibration [samples, seq_len]`: token ids, int64.
    `align`: keep an FFN width that is a multiple of it. The KV groups and the width kept follow `budget.width_for`.
    InputError for other methods, a bad calibration, blocks that differ, or a target no width meets.
    """
    if method not in METHODS:
        raise InputError(f"width: method {method!r}: {', '.join(METHODS)} is expected")
    if (ratio is None) == (target_parameters is None):
        raise InputError(
            f"width: ratio {ratio!r} and target_parameters {target_parameters!r}: exactly one of them is expected"
        )
    ids = _checked(calibration, decoder)
    # Padding is no part of the model's size, and no candidate for removal.
    bare = pad(decoder, 1)
    sizes = UniformSizes.of(bare)
    target = depth_row(sizes, ratio) if ratio is not None else target_parameters
    assert target is not None
    groups_kept, neurons_kept = width_for(sizes, target, align=align)
    original, gone = OriginalSizes.of(bare), recorded(bare)
    kv_groups: dict[int, list[int]] = {}
    neurons: dict[int, list[int]] = {}
    with torch.inference_mode():
        for block, groups, channels in METHODS[method](bare, ids, groups_kept, neurons_kept):
            index = block.index
            kv_groups[index] = _others(kept(original.kv_groups, gone.kv_groups.get(index, ())), groups)
            neurons[index] = _others(kept(original.width, gone.neurons.get(index, ())), channels)
    return Pruning(model=gone.model, kv_groups=kv_groups, neurons=neurons, made_by=f"width {method}")


def _others(original: list[int], places: list[int]) -> list[int]:
    """The original indices of all places but these."""
    stay = set(places)
    return [index for place, index in enumerate(original) if place not in stay]


def _checked(calibration: Tensor | None, decoder: Decoder) -> Tensor:
    if not isinstance(calibration, Tensor) or calibration.dtype != torch.long or calibration.dim() != 2:
        shown = "none" if calibration is None else getattr(calibration, "dtype", type(calibration).__name__)
        shape = list(getattr(calibration, "shape", ()))
        raise InputError(f"width: calibration {shown} {shape}: token ids, int64 [samples, seq_len], are expected")
    if not calibration.numel():
        raise InputError(f"width: calibration {list(calibration.shape)} is empty; at least one token is expected")
    low, high = int(calibration.min()), int(calibration.max())
    if low < 0 or high >= decoder.vocab_size:
        raise InputError(f"width: calibration ids {low} to {high}; 0 to {decoder.vocab_size - 1} are accepted")
    if calibration.shape[1] > decoder.max_positions:
        raise InputError(
            f"width: calibration of {calibration.shape[1]} tokens a sample; up to {decoder.max_positions} are accepted"
        )
    return calibration
