"""Iterative pruning as rows of a recipe: remove a unit, retrain, score again, by `pyprune.iterate`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pyprune.evaluation.windows import TextWindows
from pyprune.models.decoder import Decoder
from pyprune.retraining.iterate import iterate
from pyprune.retraining.iterated import Iterated
from pyprune.scoring.calibration import Windows
from pyprune.study.progress import Progress
from pyprune.study.recipes.budget import Budget
from pyprune.study.recipes.recipe import Prune
from pyprune.study.recipes.store import Store
from pyprune.study.recipes.texts import RecipeTexts
from pyprune.study.recipes.training import retrained, training_settings


def iterated(
    decoder: Decoder,
    tokenizer: Any,
    identity: dict[str, Any],
    prune: Prune,
    count: int,
    calibration: Windows,
    held_out: TextWindows,
    texts: RecipeTexts,
    budget: Budget,
    store: Store,
    progress: Progress,
) -> Iterated:
    """`count` rounds of a removal and a training of the budget's `round_steps`, in float32, so that no round rounds the
    weights. The curves without training are left out: other rows have them."""
    decoder = decoder.to(dtype=torch.float32)
    content = {
        "model": {**identity, "dtype": "float32"},
        "calibration": calibration.fingerprint["sha256"],
        "held_out": held_out.description(),
        "unit": prune.unit,
        "count": count,
        "retrain": training_settings(decoder, texts, budget, False, budget.round_steps),
    }

    def train(
        pruned: Decoder, steps: int, seed: int, state: Path | None, progress: Callable[[int, int], None]
    ) -> Decoder:
        result, _ = retrained(
            pruned, texts, budget, tokenizer=tokenizer, steps=steps, seed=seed, teacher=None, state=state,
            progress=progress,
        )  # fmt: skip
        return result

    scratch = store.scratch("iterate", content)
    journal = scratch.with_name(f"{scratch.name}.journal")

    def make() -> dict[str, Any]:
        result = iterate(
            decoder, calibration.input_ids, held_out=held_out.input_ids, count=count, unit=prune.unit,
            steps=budget.round_steps, untrained=False, train=train, seed=budget.seed,
            calibration=calibration.fingerprint, resume=journal, progress=progress,
        )  # fmt: skip
        return result.to_dict()

    result = store.part("iterate", content, make)
    shutil.rmtree(journal, ignore_errors=True)  # only now: until then an interrupted run goes on from it
    return Iterated.from_dict(result)
