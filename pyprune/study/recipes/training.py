"""Retraining a row of a recipe by `pyprune.retrain`, with the budget's settings."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pyprune.models.decoder import Decoder
from pyprune.retraining import Retrained, retrain_with_report
from pyprune.scoring.calibration import public_name
from pyprune.scoring.calibration.sources import Source, Texts
from pyprune.study.progress import Progress
from pyprune.study.recipes.budget import Budget
from pyprune.study.recipes.texts import RecipeTexts, training_text

SETTINGS = ("steps", "batch", "micro_batch", "cutoff", "learning_rate", "warmup_steps", "lora_rank", "seed")


def training_settings(decoder: Decoder, texts: RecipeTexts, budget: Budget, distill: bool) -> dict[str, Any]:
    """What a retraining depends on beyond the model, as JSON data."""
    if texts.instructions is not None:
        data = {"instructions": public_name(texts.instructions), "sha256": _file_digest(texts.instructions)}
    else:
        source = training_text(decoder, texts, budget)
        data = {"text": source.name, "sha256": _source_digest(source)}
    settings = {name: getattr(budget, name) for name in SETTINGS}
    if budget.steps is None:
        settings["epochs"] = budget.epochs
    return {**settings, "distill": distill, **data}


def training_source(decoder: Decoder, texts: RecipeTexts, budget: Budget) -> dict[str, Any]:
    """What a model is trained on, as `pyprune.retrain` takes it."""
    if texts.instructions is not None:
        return {"instructions": texts.instructions}
    return {"text": training_text(decoder, texts, budget)}


def retrained(
    decoder: Decoder,
    texts: RecipeTexts,
    budget: Budget,
    teacher: Decoder | None,
    journal: Path,
    name: str,
    progress: Progress,
) -> Retrained:
    """The model after LoRA retraining, merged, and how that went. journal: the file that an interrupted run goes on
    from."""
    settings: dict[str, Any] = {key: getattr(budget, key) for key in SETTINGS}
    if budget.steps is None:
        settings["epochs"] = budget.epochs
    settings |= training_source(decoder, texts, budget)
    if teacher is not None:
        settings["distill_from"] = teacher
    journal.parent.mkdir(parents=True, exist_ok=True)
    return retrain_with_report(
        decoder, resume=journal, progress=lambda done, total, loss: progress(f"retraining, {name}", done, total),
        **settings,
    )  # fmt: skip


def _source_digest(source: Source) -> str:
    digest = hashlib.sha256()
    for document in source.documents:
        digest.update(document.encode() if isinstance(source, Texts) else document.tobytes())  # type: ignore[union-attr]
    return digest.hexdigest()


def _file_digest(name: str) -> str | None:
    """None of a data set of the hub, whose name stands for it."""
    file = Path(name)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
