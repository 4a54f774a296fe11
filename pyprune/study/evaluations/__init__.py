"""What a comparison measures of quality: one file an evaluation, one line for it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyprune.errors import InputError
from pyprune.study.evaluations.accuracy import Accuracy
from pyprune.study.evaluations.evaluation import Evaluation, Material, Need
from pyprune.study.evaluations.perplexity import Perplexity

EVALUATIONS: dict[str, Callable[..., Evaluation]] = {
    Perplexity.name: Perplexity,
    Accuracy.name: Accuracy.of,
}
"""Name -> what makes one of its settings."""

DEFAULT: tuple[Evaluation, ...] = (Perplexity(),)


def evaluations_of(results: Mapping[str, Any]) -> list[Evaluation]:
    """The evaluations that results hold; InputError for one that is not known here."""
    evaluations = []
    for name, settings in results.get("evaluations", {Perplexity.name: {}}).items():  # older results name none
        if name not in EVALUATIONS:
            raise InputError(f"results with the evaluation {name!r}: {', '.join(EVALUATIONS)} are accepted")
        evaluations.append(EVALUATIONS[name](**settings))
    return evaluations


__all__ = ["DEFAULT", "EVALUATIONS", "Accuracy", "Evaluation", "Material", "Need", "Perplexity", "evaluations_of"]
