"""Retraining a row of a recipe by `pyprune.retrain`, with the budget's settings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.retraining import Retrained, retrain_with_report
from pyprune.retraining.train import training_samples
from pyprune.scoring.calibration import public_name
from pyprune.scoring.calibration.sources import Source, Texts
from pyprune.study.recipes.budget import Budget
from pyprune.study.recipes.texts import RecipeTexts, training_text

SETTINGS = ("batch", "micro_batch", "cutoff", "learning_rate", "warmup_steps", "lora_rank", "precision")

WATCHED = 16
"""Samples of the training text that are kept from training, to see the loss before and after."""


def training_settings(
    decoder: Decoder, texts: RecipeTexts, budget: Budget, distill: bool, steps: int | None
) -> dict[str, Any]:
    """What a training of `steps` (None: the budget's epochs) depends on beyond the model, as JSON data."""
    if texts.instructions is not None:
        data = {"instructions": public_name(texts.instructions), "sha256": _file_digest(texts.instructions)}
    else:
        source = training_text(decoder, texts, budget)
        data = {"text": source.name, "sha256": _source_digest(source)}
    return {**_settings(budget, steps), "seed": budget.seed, "distill": distill, **data}


def _settings(budget: Budget, steps: int | None) -> dict[str, Any]:
    settings = {name: getattr(budget, name) for name in SETTINGS} | {"held_out": WATCHED}
    # A short training is not watched in between, which would take longer than the training itself.
    return settings | ({"epochs": budget.epochs} if steps is None else {"steps": steps, "eval_steps": steps})


def training_source(decoder: Decoder, texts: RecipeTexts, budget: Budget) -> dict[str, Any]:
    """What a model is trained on, as `pyprune.retrain` takes it."""
    if texts.instructions is not None:
        return {"instructions": texts.instructions}
    return {"text": training_text(decoder, texts, budget)}


def require_samples(decoder: Decoder, texts: RecipeTexts, budget: Budget, tokenizer: Any) -> None:
    """Raise InputError now, before slow work, for a text that gives too few samples to train on."""
    source = training_source(decoder, texts, budget)
    text, instructions = source.get("text"), source.get("instructions")
    samples, names, _ = training_samples(decoder, text, instructions, budget.cutoff, tokenizer=tokenizer)
    if len(samples) <= WATCHED:
        raise InputError(
            f"training: {', '.join(names.values())} has {len(samples)} samples of at most {budget.cutoff} tokens; more "
            f"than {WATCHED}, which are kept from training, are expected"
        )


def retrained(
    decoder: Decoder,
    texts: RecipeTexts,
    budget: Budget,
    *,
    tokenizer: Any,
    steps: int | None,
    seed: int,
    teacher: Decoder | None,
    state: Path | None,
    progress: Callable[[int, int], None],
) -> tuple[Decoder, Retrained]:
    """The model after LoRA retraining, merged, and how that went. state: the file that an interrupted run goes on
    from."""
    if state is not None:
        state.parent.mkdir(parents=True, exist_ok=True)
    result = retrain_with_report(
        decoder, **training_source(decoder, texts, budget), **_settings(budget, steps), seed=seed, tokenizer=tokenizer,
        distill_from=teacher, resume=False if state is None else state,
        progress=lambda done, total, loss: progress(done, total),
    )  # fmt: skip
    assert isinstance(result.decoder, Decoder)  # a model of ours is retrained to one of ours
    return result.decoder, result


def _source_digest(source: Source) -> str:
    digest = hashlib.sha256()
    for document in source.documents:
        digest.update(document.encode() if isinstance(source, Texts) else document.tobytes())  # type: ignore[union-attr]
    return digest.hexdigest()


def _file_digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
