"""What an evaluation of a comparison's rows is, and what it works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pyprune.models.decoder import Decoder
from pyprune.scoring.calibration import Windows
from pyprune.study.columns import Column, ModelLine
from pyprune.study.progress import Progress, silent

Need = Literal["windows", "tokenizer"]


@dataclass(frozen=True)
class Material:
    """What all rows are evaluated with: held-out `windows`, the model's tokenizer (None for random shapes), what
    progress is reported to, and by a row's name the file that keeps what is finished of it, if any is kept."""

    windows: Windows
    tokenizer: Any | None = None
    progress: Progress = silent
    journal: Callable[[str], Path | None] = lambda name: None


class Evaluation(Protocol):
    """A measure of a model's quality. An instance holds its settings; `EVALUATIONS` lists the kinds.

    `needs`: "windows" where a held-out window must fit into the model's context, "tokenizer" where texts must be
    tokenised; what is missing is an InputError before the work begins. `columns`: what it adds to CSV, page and screen;
    their values come from the row's entry in the results.
    """

    @property
    def name(self) -> str:
        """What the results and `EVALUATIONS` call it."""

    @property
    def needs(self) -> frozenset[Need]: ...

    @property
    def columns(self) -> tuple[Column[ModelLine], ...]: ...

    def check(self) -> None:
        """Raise InputError for what cannot be had, whatever the model."""

    def evaluate(self, name: str, decoder: Decoder, material: Material) -> dict[str, Any]:
        """JSON data for the entry of the row of this name in the results; keys that no other evaluation has."""

    def findings(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Sentences on the rows of one ratio, from their entries in the results."""

    def settings(self) -> dict[str, Any]:
        """JSON data of which its kind makes it again, as keywords."""

    def argv(self) -> list[str]:
        """The options of `pyprune compare` that ask for it; none where it is always taken."""
