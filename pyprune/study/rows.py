"""The rows of a comparison: the original, and its depth-pruned, width-pruned and padded forms of each ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pyprune import pruning, scoring
from pyprune.models.decoder import Decoder
from pyprune.models.sizes import describe_sizes
from pyprune.pruning import Pruning
from pyprune.pruning.width import METHODS
from pyprune.scoring.calibration import Windows
from pyprune.scoring.scores import Scores
from pyprune.study.config import CompareConfig
from pyprune.study.evaluations import Evaluation, Material
from pyprune.study.labels import DEPTH, ORIGINAL, padded
from pyprune.study.progress import Progress, silent


@dataclass(frozen=True)
class Row:
    """One model of the comparison: the decoder as it is timed, and how it came about."""

    name: str
    method: str
    ratio: str | None
    decoder: Decoder
    pruning: dict[str, Any] | None


@dataclass(frozen=True)
class RatioPrunings:
    """The prunings of one ratio; `widths`: method -> as it comes, and padded."""

    depth: Pruning
    widths: dict[str, tuple[Pruning, Pruning]]


def choose_prunings(
    decoder: Decoder, config: CompareConfig, calibration: Windows, progress: Progress = silent
) -> tuple[dict[str, RatioPrunings], Scores]:
    """The depth, width and padded prunings of each ratio, and the scores that chose the blocks.

    The model is scored in its checkpoint's dtype (on a CPU with float32 activations), whatever dtype is timed. Width
    is matched to the depth row's actual parameter count, not to the ratio.
    """
    scores = scoring.score(
        decoder,
        calibration.input_ids,
        criterion="ppl",
        unit="block",
        calibration=calibration.fingerprint,
        progress=partial(progress, "scoring"),
    )
    prunings = {}
    for ratio in map(str, config.ratios):
        depth = pruning.depth(scores, decoder, ratio=pruning.parse_ratio(ratio))
        target, widths = pruning.apply(decoder, depth).parameters(), {}
        for method in config.methods:
            label = f"{method} {ratio}"
            progress(label, 0, 1)
            width = pruning.width(
                decoder,
                method,
                target_parameters=target,
                calibration=calibration.input_ids if METHODS[method].calibrated else None,
                progress=partial(progress, label),
            )
            widths[method] = width | Pruning(pad_to=1), width | Pruning(pad_to=config.pad_multiple)
            progress(label, 1, 1)
        prunings[ratio] = RatioPrunings(depth, widths)
    return prunings, scores


def make_rows(decoder: Decoder, prunings: dict[str, RatioPrunings], dtype: torch.dtype | None = None) -> list[Row]:
    """The original and, for each ratio, its pruned forms, in that dtype (None: the decoder's)."""
    decoder = decoder if dtype is None else decoder.to(dtype=dtype)
    rows = [Row(ORIGINAL, ORIGINAL, None, decoder, None)]
    for ratio, chosen in prunings.items():
        shorter = pruning.apply(decoder, chosen.depth)
        rows.append(Row(f"{DEPTH} {ratio}", DEPTH, ratio, shorter, chosen.depth.to_dict()))
        for method, (width, with_padding) in chosen.widths.items():
            name = f"{method} {ratio}"
            wider = pruning.apply(decoder, with_padding)
            rows.append(Row(name, method, ratio, pruning.apply(decoder, width), width.to_dict()))
            # The long list of neurons stands once, in the row that it repeats.
            record = {"as": name, "pad_to": with_padding.pad_to}
            rows.append(Row(f"{name}, padded", padded(method), ratio, wider, record))
    return rows


def evaluated(rows: Sequence[Row], evaluations: Sequence[Evaluation], material: Material) -> list[dict[str, Any]]:
    """Each row's names, sizes, what the evaluations measured, and pruning, as JSON data."""
    entries = []
    for row in rows:
        values = {"name": row.name, "method": row.method, "ratio": row.ratio}
        values |= describe_sizes(row.decoder, rows[0].decoder.parameters())
        for evaluation in evaluations:
            values |= evaluation.evaluate(row.name, row.decoder, material)
        entries.append({**values, "pruning": row.pruning})
    return entries
