"""What was measured of a model's quality, as data. No torch here."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from pyprune.errors import InputError
from pyprune.evaluation.paper_tasks import paper_average
from pyprune.files import read_json_as, write_json
from pyprune.scoring.scores import json_number, read_number

FORMAT = "pyprune-evaluation/1"


@dataclass(frozen=True)
class Evaluation:
    """A model's quality. `model`: its name; `dtype`: of its weights.

    `perplexity`: exp(mean NLL) over all tokens that count; `stderr`: its standard error over windows (None for one
    window); `bits_per_byte`: bits of loss over bytes of text (None for token ids); all None where no text was given.
    `text`: where the text's tokens came from and how they were cut into windows. `tasks`: `{name: {"acc", "acc_stderr",
    "acc_norm", "acc_norm_stderr", "documents"}}`. InputError for a value that is no number.
    """

    model: str
    dtype: str
    perplexity: float | None = None
    stderr: float | None = None
    bits_per_byte: float | None = None
    text: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("model", "dtype"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"evaluation: {name} {getattr(self, name)!r}: a name is expected")
        for name in ("perplexity", "stderr", "bits_per_byte"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, read_number(getattr(self, name), name))
        for name in ("text", "tasks"):
            if not isinstance(getattr(self, name), dict):
                raise InputError(f"evaluation: {name} {getattr(self, name)!r}: an object is expected")

    @property
    def average(self) -> dict[str, Any] | None:
        """The paper's average over its seven tasks, `{"value", "stderr", "mix"}`; None where not all were taken."""
        return paper_average(self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form. An infinite perplexity is written as the string "inf"."""
        numbers = {name: getattr(self, name) for name in ("perplexity", "stderr", "bits_per_byte")}
        return {
            "format": FORMAT,
            "model": self.model,
            "dtype": self.dtype,
            **{name: None if value is None else json_number(value) for name, value in numbers.items()},
            "text": self.text,
            "tasks": self.tasks,
            "average": self.average,
        }

    @classmethod
    def from_dict(cls, data: object) -> Evaluation:
        """Read the JSON form. InputError for another format or a missing key."""
        if not isinstance(data, dict):
            raise InputError(f"evaluation: a JSON object is expected, not {type(data).__name__}")
        if data.get("format") != FORMAT:
            raise InputError(f"evaluation: format {data.get('format')!r}: {FORMAT} is expected")
        names = ("model", "dtype", "perplexity", "stderr", "bits_per_byte", "text", "tasks")
        for name in names:
            if name not in data:
                raise InputError(f"evaluation: the key {name!r} is missing; {', '.join(names)} are expected")
        return cls(**{name: data[name] for name in names})

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the evaluation as JSON, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Evaluation:
        """Read an evaluation from a JSON file; InputError naming the file when it holds none."""
        return read_json_as(path, cls.from_dict)
