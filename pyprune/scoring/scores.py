"""Scores as data: what removing each unit of a model costs, and how that was measured. No torch here."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pyprune.checks import is_whole
from pyprune.errors import InputError
from pyprune.files import read_json_as, write_json

FORMAT = "pyprune-scores/1"
UNITS = ("block", "mha", "ffn")
CANDIDATE = "candidate"
"""The unit of scores of candidates that the caller gave; its index is the place in the list."""

_INFINITIES = {"inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True)
class Measured:
    """One measure's values, in the order of the units, and its value of the unpruned model."""

    baseline: float
    values: list[float]


@dataclass(frozen=True)
class Scores:
    """One score per prunable unit, or candidate; the lowest is the most removable.

    `units`: `(unit, index)` pairs, `unit` one of "block", "mha", "ffn" and `index` the block's index in the original
    model; `values`: one score each, in the same order (for criterion "ppl": the perplexity without that unit, Shortened
    LLaMA section 3.1); `baseline`: the same measure of the unpruned model, None where the criterion has none. `unit`:
    what was ranked; one of the three, or another name where kinds are ranked together. `parameters` (of the unpruned
    model, a tied head once) and `unit_parameters` (of each unit) let a ratio be turned into a count without the model.
    `options`: those of the criterion. `protected`: units that must stay, last in the order. `measures`: by name, where
    several were asked for; `values` and `baseline` are those of the first. `candidates`: of unit "candidate" what each
    changes, with its name. InputError for anything that cannot be ranked: no units, a NaN, lengths that differ, a unit
    twice.
    """

    model: str
    criterion: str
    unit: str
    baseline: float | None
    units: list[tuple[str, int]]
    values: list[float]
    calibration: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    unit_parameters: list[int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    protected: list[tuple[str, int]] = field(default_factory=list)
    measures: dict[str, Measured] = field(default_factory=dict)
    candidates: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        for name in ("model", "criterion", "unit"):
            value = getattr(self, name)
            if not isinstance(value, str) or (name != "model" and not value):
                raise InputError(f"scores: {name} {value!r}: a name is expected")
        units = [read_unit(entry) for entry in _sequence(self.units, "units")]
        values = [read_number(value, f"score of {unit}") for value, unit in _paired(self.values, units, "values")]
        if not units:
            raise InputError("scores: no units; at least one is expected")
        if len(set(units)) != len(units):
            kind, index = next(unit for unit in units if units.count(unit) > 1)
            raise InputError(f"scores: {kind} {index} is scored twice; each unit is expected once")
        if self.unit in (*UNITS, CANDIDATE) or self.candidates is not None:
            for kind, index in units:
                if kind != self.unit:
                    raise InputError(f"scores: {kind} {index} among scores of unit {self.unit!r}; one kind is expected")
        for name in ("calibration", "options"):
            if not isinstance(getattr(self, name), dict):
                raise InputError(f"scores: {name} {getattr(self, name)!r}: an object is expected")
        protected = [read_unit(entry) for entry in _sequence(self.protected, "protected")]
        for kind, index in protected:
            if (kind, index) not in units:
                raise InputError(f"scores: {kind} {index} is protected, but not scored; a scored unit is expected")
        sizes = self.unit_parameters
        if sizes is not None:
            sizes = [_size(size, f"parameters of {unit}") for size, unit in _paired(sizes, units, "unit_parameters")]
        if self.parameters is not None:
            object.__setattr__(self, "parameters", _size(self.parameters, "parameters"))
        self._check_candidates(units)
        # A frozen dataclass is normalised through object.__setattr__: callers may hand in tuples or NumPy scalars.
        object.__setattr__(self, "units", units)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "unit_parameters", sizes)
        object.__setattr__(self, "protected", protected)
        if self.baseline is not None:
            object.__setattr__(self, "baseline", read_number(self.baseline, "baseline"))

    def _check_candidates(self, units: list[tuple[str, int]]) -> None:
        if not isinstance(self.measures, dict):
            raise InputError(f"scores: measures {self.measures!r}: an object from a name to its values is expected")
        measures = {}
        for name, measured in self.measures.items():
            values = [read_number(v, f"{name} of {unit}") for v, unit in _paired(measured.values, units, name)]
            measures[name] = Measured(read_number(measured.baseline, f"baseline of {name}"), values)
        object.__setattr__(self, "measures", measures)
        described = self.candidates
        if described is None:
            return
        for entry, _ in _paired(described, units, "candidates"):
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                raise InputError(f"scores: candidate {entry!r}: an object with a name is expected")
        if [index for _, index in units] != list(range(len(units))):
            raise InputError("scores: units of candidates: their places 0, 1, 2 ... are expected")

    def names(self) -> list[str]:
        """What each unit is called: "block 3", or the name of a candidate."""
        if self.candidates is not None:
            return [entry["name"] for entry in self.candidates]
        return [f"{kind} {index}" for kind, index in self.units]

    def order(self) -> list[tuple[str, int]]:
        """The units from the most to the least removable: ascending score, equal scores by block index; protected ones
        behind all others."""
        protected = set(self.protected)
        ranked = sorted(
            zip(self.values, self.units, strict=True),
            key=lambda pair: (pair[1] in protected, pair[0], pair[1][1], pair[1][0]),
        )
        return [unit for _, unit in ranked]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form. An infinite score (a perplexity beyond float64) is written as the string "inf"."""
        data: dict[str, Any] = {
            "format": FORMAT,
            "model": self.model,
            "criterion": self.criterion,
            "unit": self.unit,
            "baseline": None if self.baseline is None else json_number(self.baseline),
            "scores": [
                {"unit": kind, "index": index, "score": json_number(value)}
                for (kind, index), value in zip(self.units, self.values, strict=True)
            ],
            "order": [list(unit) for unit in self.order()],
            "calibration": self.calibration,
        }
        if self.parameters is not None:
            data["parameters"] = self.parameters
        if self.unit_parameters is not None:
            data["unit_parameters"] = self.unit_parameters
        if self.options:
            data["options"] = self.options
        if self.protected:
            data["protected"] = [list(unit) for unit in self.protected]
        if self.measures:
            data["measures"] = {
                name: {"baseline": json_number(measured.baseline), "values": list(map(json_number, measured.values))}
                for name, measured in self.measures.items()
            }
        if self.candidates is not None:
            data["candidates"] = self.candidates
        return data

    @classmethod
    def from_dict(cls, data: object) -> Scores:
        """Read the JSON form. InputError for another format (older files name none), when a key is missing, or the
        order does not follow from the scores."""
        if not isinstance(data, dict):
            raise InputError(f"scores: a JSON object is expected, not {type(data).__name__}")
        if data.get("format", FORMAT) != FORMAT:
            raise InputError(f"scores: format {data['format']!r}: {FORMAT} is expected")
        for key in ("model", "criterion", "unit", "scores"):
            if key not in data:
                raise InputError(f"scores: the key {key!r} is missing; model, criterion, unit and scores are expected")
        rows = _sequence(data["scores"], "scores")
        for row in rows:
            if not isinstance(row, dict) or not {"unit", "index", "score"} <= row.keys():
                raise InputError(f"scores: {row!r}: an object with unit, index and score is expected")
        scores = cls(
            model=data["model"],
            criterion=data["criterion"],
            unit=data["unit"],
            baseline=data.get("baseline"),
            units=[(row["unit"], row["index"]) for row in rows],
            values=[row["score"] for row in rows],
            calibration=data.get("calibration", {}),
            parameters=data.get("parameters"),
            unit_parameters=data.get("unit_parameters"),
            options=data.get("options", {}),
            protected=data.get("protected", []),
            measures=_read_measures(data.get("measures", {})),
            candidates=data.get("candidates"),
        )
        # An order edited by hand would otherwise be ignored in silence.
        if "order" in data and data["order"] != [list(unit) for unit in scores.order()]:
            raise InputError("scores: the key 'order' does not follow from the scores; ascending scores are expected")
        return scores

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the scores as JSON, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Scores:
        """Read scores from a JSON file; InputError naming the file when it holds none."""
        return read_json_as(path, cls.from_dict)


def _read_measures(data: object) -> dict[str, Measured]:
    if not isinstance(data, dict):
        raise InputError(f"scores: measures {data!r}: an object from a name to its values is expected")
    for name, measured in data.items():
        if not isinstance(measured, dict) or not {"baseline", "values"} <= measured.keys():
            raise InputError(f"scores: measure {name} {measured!r}: an object with baseline and values is expected")
    return {name: Measured(measured["baseline"], measured["values"]) for name, measured in data.items()}


def _sequence(value: object, name: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"scores: {name} {value!r}: a list is expected")
    return value


def _paired(values: object, units: list[tuple[str, int]], name: str) -> list[tuple[Any, str]]:
    items = _sequence(values, name)
    if len(items) != len(units):
        raise InputError(f"scores: {len(items)} {name} for {len(units)} units; one each is expected")
    return [(item, f"{kind} {index}") for item, (kind, index) in zip(items, units, strict=True)]


def read_unit(entry: object) -> tuple[str, int]:
    if not isinstance(entry, (list, tuple)) or len(entry) != 2 or entry[0] not in (*UNITS, CANDIDATE):
        raise InputError(f"scores: unit {entry!r}: a pair of {', '.join(UNITS)} and a block index is expected")
    return entry[0], _size(entry[1], f"index of {entry[0]}")


def _size(value: object, name: str) -> int:
    if not is_whole(value) or (number := operator.index(value)) < 0:
        raise InputError(f"scores: {name} {value!r}: a whole number from 0 is expected")
    return number


def read_number(value: object, name: str) -> float:
    if isinstance(value, str) and value in _INFINITIES:
        return _INFINITIES[value]
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__") or math.isnan(number := float(value)):
        raise InputError(f"scores: {name} {value!r}: a number is expected")
    return number


def json_number(value: float) -> float | str:
    """A number as JSON has it; an infinity, which JSON lacks, as the string "inf" or "-inf"."""
    return value if math.isfinite(value) else str(value)
