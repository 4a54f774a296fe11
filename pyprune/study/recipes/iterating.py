"""Iterative pruning as rows of a recipe: remove a unit, retrain, score again, by `pyprune.iterate`."""

from __future__ import annotations

import shutil
from typing import Any

from pyprune.evaluation.windows import TextWindows
from pyprune.models.decoder import Decoder
from pyprune.retraining.iterate import iterate, journal_of
from pyprune.retraining.iterated import Iterated
from pyprune.scoring.calibration import Windows
from pyprune.study.progress import Progress
from pyprune.study.recipes.budget import Budget
from pyprune.study.recipes.recipe import Prune
from pyprune.study.recipes.store import Store
from pyprune.study.recipes.texts import RecipeTexts
from pyprune.study.recipes.training import training_settings, training_source


def iterated(
    decoder: Decoder,
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
    """`count` rounds of a removal and a training of the budget's `round_steps`, and the curves beside them."""
    settings = training_settings(decoder, texts, budget, False) | {"steps": budget.round_steps}
    content = {
        "model": identity,
        "calibration": calibration.fingerprint["sha256"],
        "held_out": held_out.description(),
        "unit": prune.unit,
        "count": count,
        "retrain": {key: value for key, value in settings.items() if key != "epochs"},
    }

    def make() -> dict[str, Any]:
        place = store.scratch("iterate", content)
        place.parent.mkdir(parents=True, exist_ok=True)
        names = ("batch", "micro_batch", "cutoff", "learning_rate", "warmup_steps", "lora_rank")
        result = iterate(
            decoder, calibration.input_ids, held_out=held_out.input_ids, count=count, unit=prune.unit,
            steps=budget.round_steps, seed=budget.seed, calibration=calibration.fingerprint, out=place, resume=True,
            progress=progress, **training_source(decoder, texts, budget),
            **{name: getattr(budget, name) for name in names},
        )  # fmt: skip
        shutil.rmtree(journal_of(place), ignore_errors=True)
        return result.to_dict()

    return Iterated.from_dict(store.part("iterate", content, make))
