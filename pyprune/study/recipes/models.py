"""The models of a recipe: pruned, repaired and retrained forms of one, each made once and kept."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from pyprune import pruning, scoring
from pyprune.models.decoder import Decoder
from pyprune.pruning import Pruning
from pyprune.pruning.amount import parse_amount
from pyprune.pruning.width import METHODS
from pyprune.recovery import repair_with_report
from pyprune.recovery.local_steps import default_precision
from pyprune.recovery.methods import VERSION
from pyprune.scoring.calibration import Windows
from pyprune.scoring.journal import weights_digest
from pyprune.scoring.scores import Scores
from pyprune.scoring.searches import SearchResult
from pyprune.study import machine
from pyprune.study.depth_choice import ONE_SHOT, DepthChoice
from pyprune.study.progress import Progress, silent
from pyprune.study.recipes.budget import Budget
from pyprune.study.recipes.recipe import DEPTH, Model, Prune
from pyprune.study.recipes.store import Store
from pyprune.study.recipes.texts import RecipeTexts, calibration_windows, repair_windows
from pyprune.study.recipes.training import retrained, training_settings


class Models:
    """Makes what the rows name of one original. `decoder`: in its checkpoint's dtype."""

    def __init__(
        self, decoder: Decoder, texts: RecipeTexts, budget: Budget, store: Store, progress: Progress = silent
    ) -> None:
        self.decoder = decoder
        self.tokenizer = None if decoder.tokenizer_source is None else decoder.tokenizer()
        self._texts, self._budget, self._store, self._progress = texts, budget, store, progress
        self._windows: dict[int, Windows] = {}
        self._of_repairs: Windows | None = None
        self.identity = {
            "weights": weights_digest(decoder.tensors()),
            "dtype": str(decoder.dtype).removeprefix("torch."),
            "device": decoder.device.type,
            "versions": machine.describe()["versions"],
        }

    def windows(self, samples: int | None) -> Windows:
        """Calibration windows, drawn once for each number of them."""
        count = samples or self._budget.samples
        if count not in self._windows:
            self._windows[count] = calibration_windows(self.decoder, self.tokenizer, self._texts, self._budget, count)
        return self._windows[count]

    def used_windows(self) -> list[dict[str, Any]]:
        """The fingerprints of all calibration windows that were drawn."""
        used = [windows.fingerprint for _, windows in sorted(self._windows.items())]
        return used if self._of_repairs is None else [*used, self._of_repairs.fingerprint]

    def repair_windows(self) -> Windows:
        """What repairs are fitted on, drawn once."""
        if self._of_repairs is None:
            self._of_repairs = repair_windows(self.decoder, self.tokenizer, self._texts, self._budget)
        return self._of_repairs

    def scores(self, choice: DepthChoice, samples: int | None) -> Scores:
        """The scores that a depth pruning of one shot goes by."""
        windows = self.windows(samples)
        content = {
            "model": self.identity,
            "calibration": windows.fingerprint["sha256"],
            "criterion": choice.criterion,
            "unit": choice.unit,
            "protect": choice.protected,
        }

        def make() -> dict[str, Any]:
            return scoring.score(
                self.decoder, windows.input_ids, criterion=choice.criterion, unit=choice.unit,
                protect=choice.protected, calibration=windows.fingerprint,
                progress=partial(self._progress, f"scoring, {choice.criterion_name}, {choice.unit}"),
            ).to_dict()  # fmt: skip

        return Scores.from_dict(self._store.part("scores", content, make))

    def pruning(self, prune: Prune) -> Pruning:
        """What is removed."""
        amount = parse_amount(prune.amount)
        if prune.method == DEPTH and prune.search == ONE_SHOT:
            return pruning.depth(
                self.scores(prune.choice, prune.samples), self.decoder, ratio=amount.ratio, count=amount.count
            )
        windows = self.windows(prune.samples)
        content: dict[str, Any] = {
            "model": self.identity,
            "calibration": windows.fingerprint["sha256"],
            "prune": {key: value for key, value in vars(prune).items() if key != "samples"},
        }
        label = f"{prune.method} {prune.amount}"
        if prune.method == DEPTH:

            def search() -> dict[str, Any]:
                return scoring.search(
                    self.decoder, windows.input_ids, prune.search, ratio=amount.ratio, count=amount.count,
                    unit=prune.unit, criterion=prune.choice.criterion, protect=prune.choice.protected,
                    calibration=windows.fingerprint, progress=partial(self._progress, f"searching, {label}"),
                ).to_dict()  # fmt: skip

            return SearchResult.from_dict(self._store.part("search", content, search)).pruning()
        if not METHODS[prune.method].calibrated:
            del content["calibration"]

        def narrow() -> Pruning:
            return pruning.width(
                self.decoder,
                prune.method,
                ratio=amount.ratio,
                variant=prune.variant,
                calibration=windows.input_ids if METHODS[prune.method].calibrated else None,
                progress=partial(self._progress, label),
            )

        return self._store.pruning(content, narrow)

    def pruned(self, model: Model) -> Decoder:
        """The row's model without repair and retraining: of the same sizes, whole weights shared with the original."""
        return self.decoder if model.prune is None else pruning.apply(self.decoder, self.pruning(model.prune))

    def content(self, model: Model) -> dict[str, Any]:
        """What the row's model depends on, as JSON data: equal for equal models, whatever made them."""
        content: dict[str, Any] = {"model": self.identity, "pruning": None}
        if model.prune is not None:
            removed = replace(self.pruning(model.prune), model="", made_by="")
            content["pruning"] = removed.to_dict()
        if model.repair is not None:
            windows = self.repair_windows()
            content["repair"] = {
                "method": model.repair, "version": VERSION, "calibration": windows.fingerprint["sha256"],
                "precision": self._precision,
            }  # fmt: skip
        if self.trains(model):
            content["retrain"] = training_settings(
                self.decoder, self._texts, self._budget, model.distill, self._budget.steps
            )
        return content

    @property
    def _precision(self) -> str:
        """Of the products in a repair's gradient steps: float32 if the budget says so, else the default."""
        return "fp32" if self._budget.precision == "fp32" else default_precision(self.decoder)

    def trains(self, model: Model) -> bool:
        """Whether the row is retrained under this budget."""
        return model.retrain and self._budget.steps != 0

    def about(self, model: Model) -> Any:
        """How the row's retraining, or its repair, went; None where there was none, or it was not needed."""
        content = self.content(model)
        return self._store.about_model(content) if {"repair", "retrain"} & set(content) else None

    def made(self, model: Model) -> Decoder:
        """The row's model, in its checkpoint's dtype."""
        decoder, content = self.pruned(model), self.content(model)
        training = content.pop("retrain", None)
        if model.repair is not None:
            pruned, method = decoder, model.repair

            def mend() -> tuple[Decoder, Any]:
                repaired = repair_with_report(
                    self.decoder, pruned, self.repair_windows().input_ids, method,
                    precision=self._precision, progress=partial(self._progress, f"repairing, {model.name}"),
                )  # fmt: skip
                return repaired.decoder, repaired.to_dict()

            decoder = self._store.model(content, mend, self.decoder.device)
        if training is None:
            return decoder
        start, content = decoder, {**content, "retrain": training}
        journal = self._store.scratch("model", content)

        def train() -> tuple[Decoder, Any]:
            trained, result = retrained(
                start, self._texts, self._budget, tokenizer=self.tokenizer, steps=self._budget.steps,
                seed=self._budget.seed, teacher=self.decoder if model.distill else None, state=journal,
                progress=partial(self._progress, f"retraining, {model.name}"),
            )  # fmt: skip
            return trained, {**result.to_dict(), "curve": [point.to_dict() for point in result.curve]}

        return self._store.model(content, train, self.decoder.device)

    def in_dtype(self, decoder: Decoder) -> Decoder:
        """The model as it is evaluated and timed."""
        return decoder.to(dtype=getattr(torch, self._budget.dtype))
