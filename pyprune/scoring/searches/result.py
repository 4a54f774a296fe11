"""The result of a search as data: its steps, and their cost beside one forward pass for every candidate."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from pyprune.errors import InputError
from pyprune.files import read_json_as, write_json
from pyprune.models.pruning import Pruning
from pyprune.pruning.amount import check_count
from pyprune.pruning.depth import removal
from pyprune.scoring.cost import Passes
from pyprune.scoring.scores import json_number, read_number, read_unit

Unit = tuple[str, int]
"""Kind of unit, "block", "mha" or "ffn", and the block's index in the original model."""

FORMAT = "pyprune-search/1"


@dataclass(frozen=True)
class Choice:
    """Units that could be removed together, and the score without them and all that was removed before."""

    units: tuple[Unit, ...]
    score: float

    def to_dict(self) -> dict[str, Any]:
        return {"units": [list(unit) for unit in self.units], "score": json_number(self.score)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Choice:
        units = tuple(read_unit(unit) for unit in data["units"])
        return cls(units, read_number(data["score"], f"score of {units}"))


@dataclass(frozen=True)
class Step:
    """What a step of a search removed, the perplexity without it and all before, the parameters that it took away, and
    what it chose among (empty where it followed an earlier ranking)."""

    removed: tuple[Unit, ...]
    score: float
    parameters: int
    choices: tuple[Choice, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "removed": [list(unit) for unit in self.removed],
            "score": json_number(self.score),
            "parameters": self.parameters,
            "choices": [choice.to_dict() for choice in self.choices],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Step:
        units = tuple(read_unit(unit) for unit in data["removed"])
        score = read_number(data["score"], f"score of {units}")
        return cls(units, score, int(data["parameters"]), tuple(map(Choice.from_dict, data["choices"])))


@dataclass(frozen=True)
class SearchResult:
    """The steps of a search, each removing units for good, and its cost.

    `baseline`: perplexity of the unpruned model. `criterion`: what the choices were ranked by ("ppl": perplexity); the
    score of a step is the perplexity whatever the criterion. `parameters`: of the unpruned model. `cost`: block and
    head passes over all samples that were computed; `naive`: what one forward pass for every candidate would have been.
    `repair`: by which method the model was repaired after each step, which the step's score then is of.
    """

    model: str
    method: str
    criterion: str
    unit: str
    baseline: float
    steps: tuple[Step, ...]
    parameters: int
    cost: Passes
    naive: Passes
    calibration: dict[str, Any] = field(default_factory=dict)
    repair: str | None = None

    @property
    def order(self) -> list[Unit]:
        """All removed units, in the order in which they went."""
        return [unit for step in self.steps for unit in step.removed]

    @property
    def scores(self) -> list[float]:
        """The perplexity after each step."""
        return [step.score for step in self.steps]

    def pruning(self, steps: int | None = None) -> Pruning:
        """What the first `steps` steps remove, all of them when None; InputError for more than there are."""
        if steps is not None and check_count(steps) > len(self.steps):
            raise InputError(f"steps {steps}: this search has {len(self.steps)}")
        removed = [unit for step in self.steps[:steps] for unit in step.removed]
        return removal(self.model, removed, f"{self.method} {self.criterion} {self.unit}")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "format": FORMAT,
            "model": self.model,
            "method": self.method,
            "criterion": self.criterion,
            "unit": self.unit,
            "baseline": json_number(self.baseline),
            "order": [list(unit) for unit in self.order],
            "steps": [step.to_dict() for step in self.steps],
            "parameters": self.parameters,
            "cost": self.cost.to_dict(),
            "naive": self.naive.to_dict(),
            "calibration": self.calibration,
            **({} if self.repair is None else {"repair": self.repair}),
        }

    @classmethod
    def from_dict(cls, data: object) -> SearchResult:
        """Read the JSON form; InputError for anything that is not one."""
        if not isinstance(data, dict) or "method" not in data or "steps" not in data:
            raise InputError("search: an object with method and steps, as a search writes it, is expected")
        if data.get("format", FORMAT) != FORMAT:  # older files name none
            raise InputError(f"search: format {data['format']!r}: {FORMAT} is expected")
        try:
            steps = tuple(map(Step.from_dict, data["steps"]))
            result = cls(
                model=data["model"],
                method=data["method"],
                criterion=data["criterion"],
                unit=data["unit"],
                baseline=read_number(data["baseline"], "baseline"),
                steps=steps,
                parameters=int(data["parameters"]),
                cost=Passes.from_dict(data["cost"]),
                naive=Passes.from_dict(data["naive"]),
                calibration=data.get("calibration", {}),
                repair=data.get("repair"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"search: not what a search writes ({type(error).__name__}: {error})") from None
        if "order" in data and data["order"] != [list(unit) for unit in result.order]:
            raise InputError("search: the key 'order' does not follow from the steps")
        return result

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the result as JSON, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> SearchResult:
        """Read a result from a JSON file; InputError naming the file when it holds none."""
        return read_json_as(path, cls.from_dict)
