"""Width pruning: every block keeps its place and loses KV groups and FFN neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models import as_decoder
from pyprune.models.decoder import Decoder
from pyprune.pruning import wanda_sp
from pyprune.pruning.apply import kept, pad
from pyprune.pruning.budget import UniformSizes, depth_row, width_for
from pyprune.pruning.original import OriginalSizes
from pyprune.pruning.pruning import Pruning, original_name, recorded
from pyprune.runtime.inputs import check_ids

METHODS: dict[str, Callable[[Decoder, Tensor, int, int], Iterator[wanda_sp.Kept]]] = {"wanda-sp": wanda_sp.select}


def width(
    model: Any,
    method: str = "wanda-sp",
    *,
    ratio: float | None = None,
    target_parameters: int | None = None,
    calibration: Tensor | None = None,
    align: int | None = None,
) -> Pruning:
    """The pruning that narrows every block of a model alike, in the original model's indices.

    `model`: a Decoder, a loaded PreTrainedModel (left unchanged), or whatever `pyprune.load` takes. Exactly one of
    `ratio` (share of the model's parameters; the target is then the parameter count of the depth-pruned model of that
    ratio) and `target_parameters`. `calibration [samples, seq_len]`: token ids, integers. `align`: keep an FFN width
    that is a multiple of it. The KV groups and the width kept follow `budget.width_for`.
    InputError for other methods, a bad calibration, blocks that differ, or a target no width meets.
    """
    if method not in METHODS:
        raise InputError(f"width: method {method!r}: {', '.join(METHODS)} is expected")
    if (ratio is None) == (target_parameters is None):
        raise InputError(
            f"width: ratio {ratio!r} and target_parameters {target_parameters!r}: exactly one of them is expected"
        )
    decoder = as_decoder(model)
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
    return Pruning(model=original_name(decoder), kv_groups=kv_groups, neurons=neurons, made_by=f"width {method}")


def _others(original: list[int], places: list[int]) -> list[int]:
    """The original indices of all places but these."""
    stay = set(places)
    return [index for place, index in enumerate(original) if place not in stay]


def _checked(calibration: Tensor | None, decoder: Decoder) -> Tensor:
    if not isinstance(calibration, Tensor):
        shown = "none" if calibration is None else type(calibration).__name__
        raise InputError(f"width: calibration {shown} given; token ids, integers [samples, seq_len], are accepted")
    try:
        check_ids(calibration, decoder.vocab_size)
    except InputError as error:
        raise InputError(f"width: calibration: {error}") from None
    if calibration.shape[1] > decoder.max_positions:
        raise InputError(
            f"width: calibration of {calibration.shape[1]} tokens a sample; up to {decoder.max_positions} are accepted"
        )
    return calibration
