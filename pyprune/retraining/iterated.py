"""The result of an iterative pruning as data: its rounds, and the curves it is compared with."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyprune.errors import InputError
from pyprune.files import whole_directory, write_bytes, write_json, write_text
from pyprune.models.decoder import Decoder
from pyprune.scoring.scores import json_number, read_number, read_unit

FORMAT = "pyprune-iterate/1"
Unit = tuple[str, int]
"""Kind of unit, "block", "mha" or "ffn", and the block's index in the original model."""


@dataclass(frozen=True)
class Removal:
    """One unit less. perplexity: on the held-out text without it and all before, not retrained since it went."""

    removed: Unit
    perplexity: float

    def to_dict(self) -> dict[str, Any]:
        return {"removed": list(self.removed), "perplexity": json_number(self.perplexity)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Removal:
        return cls(read_unit(data["removed"]), read_number(data["perplexity"], "perplexity"))


@dataclass(frozen=True)
class Round(Removal):
    """A removal and the training after it. score: perplexity on the calibration text that the choice went by.
    retrained: perplexity on the held-out text after the training. parameters: that stay."""

    score: float
    retrained: float
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        more = {"score": json_number(self.score), "retrained": json_number(self.retrained)}
        return {**super().to_dict(), **more, "parameters": self.parameters}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Round:
        score, retrained = (read_number(data[name], name) for name in ("score", "retrained"))
        removal = Removal.from_dict(data)
        return cls(removal.removed, removal.perplexity, score, retrained, int(data["parameters"]))


@dataclass(frozen=True)
class Iterated:
    """Iterative pruning beside the same number of removals without training.

    `decoder`: the model after the last round, None where the result was read from a file. `steps`: of each training.
    `baseline`: perplexity of the unpruned model, `parameters` its size. `one_shot`: the front of one ranking; `greedy`:
    ranked again after each removal; neither is trained, and both are empty where that was not asked for.
    `one_shot_retrained`: the perplexity when all units of `one_shot` go at once and one training has the steps of all
    rounds; None where that was not asked for. All perplexities are on the held-out text. `calibration`, `held_out`:
    fingerprints. `settings`: of the training.
    """

    model: str
    unit: str
    steps: int
    baseline: float
    parameters: int
    rounds: tuple[Round, ...]
    one_shot: tuple[Removal, ...]
    greedy: tuple[Removal, ...]
    one_shot_retrained: float | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    held_out: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    decoder: Decoder | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, without the model."""
        last = self.one_shot_retrained
        return {
            "format": FORMAT,
            "model": self.model,
            "unit": self.unit,
            "steps": self.steps,
            "baseline": json_number(self.baseline),
            "parameters": self.parameters,
            "rounds": [step.to_dict() for step in self.rounds],
            "one_shot": [step.to_dict() for step in self.one_shot],
            "greedy": [step.to_dict() for step in self.greedy],
            "one_shot_retrained": None if last is None else json_number(last),
            "calibration": self.calibration,
            "held_out": self.held_out,
            "settings": self.settings,
        }

    def save(self, directory: str | os.PathLike[str], files: Mapping[str, bytes] | None = None) -> None:
        """Write the last model as a checkpoint, with `iterate.json`, `iterate.csv` and other files beside its own; the
        directory appears whole or not at all. InputError when it is taken."""
        assert self.decoder is not None, "a result that was read from a file has no model"
        with whole_directory(directory) as scratch:
            self.decoder.save(scratch)
            write_json(scratch / "iterate.json", self.to_dict())
            write_text(scratch / "iterate.csv", csv_text(self))
            for name, content in (files or {}).items():
                write_bytes(scratch / name, content)

    @classmethod
    def from_dict(cls, data: object) -> Iterated:
        """Read the JSON form; InputError for anything that is not one."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"iterate: an object of format {FORMAT} is expected")
        last = data.get("one_shot_retrained")
        try:
            return cls(
                model=data["model"],
                unit=data["unit"],
                steps=int(data["steps"]),
                baseline=read_number(data["baseline"], "baseline"),
                parameters=int(data["parameters"]),
                rounds=tuple(map(Round.from_dict, data["rounds"])),
                one_shot=tuple(map(Removal.from_dict, data["one_shot"])),
                greedy=tuple(map(Removal.from_dict, data["greedy"])),
                one_shot_retrained=None if last is None else read_number(last, "one_shot_retrained"),
                calibration=data["calibration"],
                held_out=data["held_out"],
                settings=data["settings"],
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"iterate: not what iterate writes ({type(error).__name__}: {error})") from None


HEADER = (
    "removed", "parameters", "iterative_unit", "iterative_pruned", "iterative_retrained", "one_shot_unit",
    "one_shot", "greedy_unit", "greedy",
)  # fmt: skip


def csv_text(result: Iterated) -> str:
    """The curves as CSV: a line for each number of units removed, from 0."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerow([0, result.parameters, "", *[result.baseline] * 2, *_beside(result, 0)])
    for number, step in enumerate(result.rounds, start=1):
        ours = (unit_text(step.removed), step.perplexity, step.retrained)
        writer.writerow([number, step.parameters, *ours, *_beside(result, number)])
    return text.getvalue()


def _beside(result: Iterated, number: int) -> list[Any]:
    """Unit and perplexity of either curve without training after so many removals; blank where it was not taken."""
    cells: list[Any] = []
    for curve in (result.one_shot, result.greedy):
        if not curve:
            cells += ["", ""]
        elif number == 0:
            cells += ["", result.baseline]
        else:
            cells += [unit_text(curve[number - 1].removed), curve[number - 1].perplexity]
    return cells


def unit_text(unit: Unit) -> str:
    """ "block 3"."""
    return f"{unit[0]} {unit[1]}"
