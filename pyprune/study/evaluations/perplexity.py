"""Perplexity on held-out windows: exp(mean NLL) over all predicted positions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from pyprune.evaluation.perplexity import window_losses
from pyprune.models.decoder import Decoder
from pyprune.study.columns import Column, ModelLine, Table, entry, perplexity, significant, times
from pyprune.study.evaluations.evaluation import Material, Need
from pyprune.study.labels import unpadded


def _over_original(line: ModelLine) -> float | None:
    original, pruned = line.original.get("ppl"), line.row.get("ppl")
    return None if original is None or pruned is None else pruned / original


def about_the_same(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool | None:
    """Whether the perplexities of two rows lie within two standard errors of their difference, the rows being taken as
    independent; None where one has no standard error (older results, or a single window)."""
    errors = row.get("ppl_stderr"), other.get("ppl_stderr")
    if errors[0] is None or errors[1] is None:
        return None
    return abs(row["ppl"] - other["ppl"]) <= 2 * math.hypot(errors[0], errors[1])


@dataclass(frozen=True)
class Perplexity:
    """`ppl`, None where it is not finite, `ppl_stderr`, its standard error over windows, and `ppl` over the
    original's: what `pyprune.evaluate` measures."""

    name: ClassVar[str] = "perplexity"
    needs: ClassVar[frozenset[Need]] = frozenset({"windows"})
    columns: ClassVar[tuple[Column[ModelLine], ...]] = (
        Column("ppl", "PPL", perplexity, entry("ppl"), Table.CSV | Table.MODELS),
        Column("ppl_stderr", "+-", significant, entry("ppl_stderr"), Table.CSV),
        Column("ppl_ratio", "of orig.", times, _over_original, Table.CSV | Table.MODELS),
    )

    def check(self) -> None:
        """Nothing: texts are checked for all."""

    def evaluate(self, name: str, decoder: Decoder, material: Material) -> dict[str, Any]:
        progress = partial(material.progress, f"perplexity, {name}")
        losses = window_losses(decoder, material.windows.input_ids, distributed=False, progress=progress)
        value = losses.perplexity
        return {"ppl": value if math.isfinite(value) else None, "ppl_stderr": losses.stderr}

    def findings(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Which row keeps the lowest perplexity, before any retraining, and what two standard errors leave open."""
        sentences = [f"The perplexity of {row['name']} is not finite." for row in rows if row["ppl"] is None]
        # Padded rows are the same models.
        finite = [row for row in rows if row["ppl"] is not None and unpadded(row["method"]) == row["method"]]
        if len(finite) > 1:
            best = min(finite, key=lambda row: row["ppl"])
            others = [row for row in finite if row is not best]
            listed = ", ".join(f"{perplexity(row['ppl'])} for {row['name']}" for row in others)
            same = {row["name"]: about_the_same(best, row) for row in others}
            if None in same.values():
                doubt = "no spread is known"
            else:
                near = ", ".join(name for name, is_same in same.items() if is_same)
                doubt = f"about the same, within two standard errors: {near or 'none of these'}"
            sentences.append(
                f"At {best['ratio']}, {best['name']} has the lowest perplexity on the held-out text, "
                f"{perplexity(best['ppl'])} ({listed}; {doubt}); nothing was retrained."
            )
        return sentences

    def settings(self) -> dict[str, Any]:
        return {}

    def argv(self) -> list[str]:
        return []
