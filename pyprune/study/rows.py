"""The rows of a comparison: the original, its depth-pruned, width-pruned and padded forms of each ratio, and other
checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pyprune import pruning
from pyprune.models import load
from pyprune.models.decoder import Decoder
from pyprune.models.load import load_sizes
from pyprune.models.sizes import describe_sizes
from pyprune.pruning import Pruning
from pyprune.pruning.width import METHODS
from pyprune.runtime.footprint import weight_bytes
from pyprune.scoring.calibration import Windows
from pyprune.study.config import CompareConfig, checkpoint_name
from pyprune.study.evaluations import Evaluation, Material
from pyprune.study.labels import CHECKPOINT, ORIGINAL, padded
from pyprune.study.progress import Progress, silent
from pyprune.study.room import Room, Shortage
from pyprune.study.unfinished import Unfinished


@dataclass(frozen=True)
class Row:
    """One model of the comparison: the decoder as it is timed, and how it came about.

    `decoder` has sizes alone where there was no room for its weights: then `shortage` says so. `source`: of a
    checkpoint, its name.
    """

    name: str
    method: str
    ratio: str | None
    decoder: Decoder
    pruning: dict[str, Any] | None
    shortage: Shortage | None = None
    source: str | None = None


@dataclass(frozen=True)
class RatioPrunings:
    """The prunings of one ratio. `depths`: method -> pruning; `widths`: method -> as it comes, and padded."""

    depths: dict[str, Pruning]
    widths: dict[str, tuple[Pruning, Pruning]]


def choose_prunings(
    decoder: Decoder,
    config: CompareConfig,
    calibration: Windows,
    kept: Unfinished,
    progress: Progress = silent,
) -> tuple[dict[str, RatioPrunings], dict[str, Any]]:
    """The depth, width and padded prunings of each ratio, and what chose the blocks: method -> scores as JSON data.

    The model is scored in its checkpoint's dtype (on a CPU with float32 activations), whatever dtype is timed. Width
    is matched to the first depth row's actual parameter count, not to the ratio.
    """
    ratios = {name: pruning.parse_ratio(name) for name in map(str, config.ratios)}
    scores, depths = {}, {}
    for choice in config.depth_choices:

        def choose(choice: Any = choice) -> dict[str, Any]:
            prunings, record = choice.prunings(decoder, ratios, calibration, progress)
            return {"scores": record, "prunings": {name: chosen.to_dict() for name, chosen in prunings.items()}}

        part = kept.part(f"scores, {choice.method}", choose)
        scores[choice.method] = part["scores"]
        depths[choice.method] = {name: Pruning.from_dict(record) for name, record in part["prunings"].items()}
    prunings = {}
    for ratio in ratios:
        first = next(iter(depths.values()))[ratio]
        target = pruning.apply(load_sizes(decoder), first).parameters()
        widths = {}
        for method in config.methods:

            def narrow(label: str = f"{method} {ratio}", method: str = method, target: int = target) -> Pruning:
                progress(label, 0, 1)
                width = pruning.width(
                    decoder,
                    method,
                    target_parameters=target,
                    calibration=calibration.input_ids if METHODS[method].calibrated else None,
                    progress=partial(progress, label),
                )
                progress(label, 1, 1)
                return width

            width = kept.pruning(f"{method} {ratio}", narrow)
            widths[method] = width | Pruning(pad_to=1), width | Pruning(pad_to=config.pad_multiple)
        prunings[ratio] = RatioPrunings({method: chosen[ratio] for method, chosen in depths.items()}, widths)
    return prunings, scores


def make_rows(
    decoder: Decoder,
    prunings: dict[str, RatioPrunings],
    dtype: torch.dtype | None = None,
    checkpoints: Sequence[tuple[str, Any]] = (),
    room: Room | None = None,
) -> list[Row]:
    """The original, for each ratio its pruned forms, and the checkpoints, in that dtype (None: the decoder's).

    room: what memory there is; a row whose weights and smallest engine do not fit in beside the rows before it has
    sizes alone (None: all are made).
    """
    decoder = decoder if dtype is None else decoder.to(dtype=dtype)
    rows = [Row(ORIGINAL, ORIGINAL, None, decoder, None)]
    if room is not None:
        room.admit(decoder, 0)
    sizes = load_sizes(decoder)
    for name, method, ratio, chosen, record in _pruned(prunings):
        rows.append(pruned_row(decoder, sizes, chosen, room, name, method, ratio, record))
    for name, spec in checkpoints:
        small = load_sizes(spec, dtype)
        shortage = None if room is None else room.admit(small, weight_bytes(small, decoder.device.type == "cuda"))
        row = small if shortage else load(spec, dtype, decoder.device)
        removed = None if row.pruning is None else row.pruning.to_dict()
        rows.append(Row(name, f"{CHECKPOINT} {name}", None, row, removed, shortage, checkpoint_name(spec)))
    return rows


def pruned_row(
    decoder: Decoder,
    sizes: Decoder,
    chosen: Pruning,
    room: Room | None,
    name: str,
    method: str,
    ratio: str | None,
    record: dict[str, Any],
) -> Row:
    """A pruned form of the decoder, whose `sizes` are those without weights; with sizes alone where `room` has none."""
    shared = {id(tensor) for _, tensor in sizes.tensors()}
    small = pruning.apply(sizes, chosen)
    new = sum(t.numel() * t.element_size() for _, t in small.tensors() if id(t) not in shared)
    shortage = None if room is None else room.admit(small, new)
    return Row(name, method, ratio, small if shortage else pruning.apply(decoder, chosen), record, shortage)


def _pruned(
    prunings: dict[str, RatioPrunings],
) -> Iterator[tuple[str, str, str, Pruning, dict[str, Any]]]:
    """Name, method, ratio, pruning and record of each pruned row."""
    for ratio, chosen in prunings.items():
        for method, depth in chosen.depths.items():
            yield f"{method} {ratio}", method, ratio, depth, depth.to_dict()
        for method, (width, with_padding) in chosen.widths.items():
            name = f"{method} {ratio}"
            yield name, method, ratio, width, width.to_dict()
            # The long list of neurons stands once, in the row that it repeats.
            record = {"as": name, "pad_to": with_padding.pad_to}
            yield f"{name}, padded", padded(method), ratio, with_padding, record


def evaluated(
    rows: Sequence[Row], evaluations: Sequence[Evaluation], material: Material, kept: Unfinished
) -> list[dict[str, Any]]:
    """Each row's names, sizes, what the evaluations measured, and pruning, as JSON data; `oom` for a row without its
    weights, of which nothing is measured."""
    return [kept.part(f"row {row.name}", partial(_evaluated, row, rows[0], evaluations, material)) for row in rows]


def _evaluated(row: Row, original: Row, evaluations: Sequence[Evaluation], material: Material) -> dict[str, Any]:
    values: dict[str, Any] = {"name": row.name, "method": row.method, "ratio": row.ratio}
    values |= describe_sizes(row.decoder, original.decoder.parameters())
    values["bytes"] = weight_bytes(row.decoder)
    if row.source is not None:
        values["source"] = row.source
    if row.shortage is not None:
        values["oom"] = row.shortage.to_json()
    else:
        for evaluation in evaluations:
            values |= evaluation.evaluate(row.name, row.decoder, material)
    return {**values, "pruning": row.pruning}
