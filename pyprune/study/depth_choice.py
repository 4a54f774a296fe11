"""How the units of a comparison's depth rows are chosen: a criterion, units, protected blocks and a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyprune import pruning, scoring
from pyprune.models.decoder import Decoder
from pyprune.pruning import Pruning
from pyprune.pruning.depth import protected_blocks
from pyprune.scoring.calibration import Windows
from pyprune.scoring.searches.candidates import Candidates
from pyprune.scoring.searches.search import check_search
from pyprune.study.labels import DEPTH
from pyprune.study.progress import Progress, silent

PAPER_PROTECTED = "first=4,last=2"
"""What the paper's Mag+ and Taylor+ keep: the "+" of a criterion's name (Shortened LLaMA, section 3.1)."""

ONE_SHOT = "one-shot"
MANY_BLOCKS = 100_000


@dataclass(frozen=True)
class DepthChoice:
    """One depth row of each ratio. `method`: what its rows are called. `criterion_name`: with the "+", if any.

    `unit`, `protect`: as in `pyprune.score`; `search`: as the method of `pyprune.search`.
    """

    method: str
    criterion_name: str
    unit: str
    protect: str | None
    search: str

    @property
    def criterion(self) -> str:
        return self.criterion_name.removesuffix("+")

    @property
    def protected(self) -> str | None:
        """The blocks that stay, those of the "+" among them."""
        if not self.criterion_name.endswith("+"):
            return self.protect
        return PAPER_PROTECTED if self.protect is None else f"{self.protect},{PAPER_PROTECTED}"

    def check(self) -> None:
        """Raise InputError for a criterion, unit, search or protection that there is not, whatever the model."""
        check_search(self.search, self.criterion, self.unit, {})
        protected_blocks(self.protect, range(MANY_BLOCKS))

    def check_model(self, decoder: Decoder, ratio: float) -> None:
        """Raise InputError where this choice cannot be made of this model."""
        Candidates.of(decoder, self.unit, self.protected, None, ratio)

    def prunings(
        self, decoder: Decoder, ratios: Mapping[str, float], calibration: Windows, progress: Progress = silent
    ) -> tuple[dict[str, Pruning], dict[str, Any]]:
        """What is removed at each ratio (by its name), and the scores or searches that say so, as JSON data."""
        ids, fingerprint = calibration.input_ids, calibration.fingerprint
        options: dict[str, Any] = {"criterion": self.criterion, "unit": self.unit, "protect": self.protected}
        if self.search == ONE_SHOT:
            scores = scoring.score(
                decoder, ids, calibration=fingerprint, progress=partial(progress, f"scoring, {self.method}"), **options
            )
            return {name: pruning.depth(scores, decoder, ratio=r) for name, r in ratios.items()}, scores.to_dict()
        results = {
            name: scoring.search(
                decoder, ids, self.search, ratio=ratio, calibration=fingerprint,
                progress=partial(progress, f"searching, {self.method} {name}"), **options,
            )
            for name, ratio in ratios.items()
        }  # fmt: skip
        return (
            {name: result.pruning() for name, result in results.items()},
            {"searches": {name: result.to_dict() for name, result in results.items()}},
        )

    def __str__(self) -> str:
        """In words."""
        unit = {"block": "whole blocks", "mha": "attention", "ffn": "FFNs", "mha+ffn": "attention and FFNs"}[self.unit]
        words = f"{unit} removed by {self.criterion_name}" + ("" if self.search == ONE_SHOT else f", {self.search}")
        return words + ("" if self.protected is None else f" (kept: {self.protected})")


def depth_choices(
    criteria: Sequence[str], unit: str = "block", protect: str | None = None, search: str = ONE_SHOT
) -> tuple[DepthChoice, ...]:
    """A choice for each criterion, checked; of several each has its criterion in the rows' names."""
    choices = []
    for name in criteria:
        method = DEPTH if len(criteria) == 1 else f"{DEPTH} {name}"
        choice = DepthChoice(method, name, unit, protect, search)
        choice.check()
        choices.append(choice)
    return tuple(choices)


def choices_of(results: Mapping[str, Any]) -> tuple[DepthChoice, ...]:
    """The choices of results; older ones removed blocks by perplexity."""
    settings = results["settings"]
    criteria = settings.get("criteria", ["ppl"])
    return tuple(
        DepthChoice(
            DEPTH if len(criteria) == 1 else f"{DEPTH} {name}", name, settings.get("unit", "block"),
            settings.get("protect"), settings.get("search", ONE_SHOT),
        )
        for name in criteria
    )  # fmt: skip
