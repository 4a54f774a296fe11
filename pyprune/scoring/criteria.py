"""Every criterion by name: what it ranks, what it needs to see, and the options that it takes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, Literal

from torch import Tensor

from pyprune.checks import is_int
from pyprune.errors import InputError
from pyprune.models.load_any import AnyDecoder
from pyprune.models.pruning import original_name
from pyprune.progress import Progress
from pyprune.scoring import after_repair, magnitude, similarity, static, taylor
from pyprune.scoring.aggregation import REDUCTIONS
from pyprune.scoring.calibration import fingerprint
from pyprune.scoring.first_order import predicted_perplexities
from pyprune.scoring.measurement import Measurement
from pyprune.scoring.perplexity import perplexity_scores
from pyprune.scoring.removals import UNIT_KINDS, units_of
from pyprune.scoring.repaired_removals import FORMS
from pyprune.scoring.scores import Scores

Needs = Literal["nothing", "tokens", "gradients"]


@dataclass(frozen=True)
class AtLeast:
    """Whole numbers from `minimum`."""

    minimum: int

    def __contains__(self, value: object) -> bool:
        return is_int(value) and value >= self.minimum

    def __str__(self) -> str:
        return f"whole numbers from {self.minimum}"


class OneOf(tuple):
    """These values."""

    def __str__(self) -> str:
        return ", ".join(map(str, self))


Accepted = AtLeast | OneOf
"""The values of an option that a criterion accepts."""


@dataclass(frozen=True)
class Variant:
    """What a variant of a criterion accepts: its units, options that it fixes to a value, options that it lacks."""

    units: tuple[str, ...] = tuple(UNIT_KINDS)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Criterion:
    """One way to rank units; the lowest score is the most removable.

    `units`: the units that it ranks. `needs`: "nothing" beyond the weights, calibration "tokens", or "gradients" of the
    loss on them. `measure(decoder, input_ids, mask, unit, *, calibration, progress, **options)` gives the scores, of
    checked options. `options`: what is accepted for each, None where `measure` itself checks it. `variants`: by the
    value of the option of that name, the first by default.
    """

    name: str
    needs: Needs
    measure: Callable[..., Scores]
    options: Mapping[str, Accepted | None] = field(default_factory=dict)
    units: tuple[str, ...] = tuple(UNIT_KINDS)
    variants: Mapping[str, Variant] = field(default_factory=lambda: {"corrected": Variant()})

    def check(self, unit: str, options: Mapping[str, Any]) -> None:
        """InputError, naming what is accepted, for a unit or an option that this criterion does not know."""
        if unit not in self.units:
            raise InputError(f"unit: {unit!r} given; {', '.join(self.units)} are accepted")
        for name, value in options.items():
            if name not in self.options:
                accepted = ", ".join(self.options) or "none"
                raise InputError(f"{name}: {value!r} given, but criterion {self.name} takes the options {accepted}")
            values = self.options[name]
            if values is not None and value not in values:
                raise InputError(f"{name}: {value!r} given; criterion {self.name} accepts {values}")
        variant_name = options.get("variant", next(iter(self.variants)))
        variant = self.variants[variant_name]
        if unit not in variant.units:
            raise InputError(
                f"unit: {unit!r} given; variant {variant_name} of {self.name} accepts {', '.join(variant.units)}"
            )
        for name, value in options.items():
            if name in variant.without:
                raise InputError(f"{name}: {value!r} given, which variant {variant_name} of {self.name} does not take")
            if name in variant.fixed and value != variant.fixed[name]:
                raise InputError(
                    f"{name}: {value!r} given; variant {variant_name} of {self.name} accepts {variant.fixed[name]}"
                )


def criterion_named(name: str) -> Criterion:
    """The criterion of that name; InputError naming all of them when there is none."""
    if name not in CRITERIA:
        raise InputError(f"criterion: {name!r} given; {', '.join(CRITERIA)} are accepted")
    return CRITERIA[name]


def _as_scores(
    name: str, measure: Callable[..., Measurement], variants: Mapping[str, Variant]
) -> Callable[..., Scores]:
    """`measure` with its values as Scores, which record the options that they were measured with."""
    parameters = inspect.signature(measure).parameters.values()
    defaults = {
        p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("progress", "memory")
    }

    @wraps(measure)
    def scores(
        decoder: AnyDecoder,
        input_ids: Tensor | None,
        mask: Tensor | None,
        unit: str,
        *,
        calibration: dict[str, Any] | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Scores:
        sizes = units_of(decoder, unit)
        variant = variants.get({**defaults, **options}.get("variant", ""), Variant())
        options = {**variant.fixed, **options}
        measurement = measure(decoder, input_ids, mask, unit, progress=progress, **options)
        values = [measurement.values[candidate] for candidate in sizes]
        if any(math.isnan(value) for value in values):
            raise ArithmeticError(f"{name} is not a number: activations overflow; float32 or bfloat16 weights may help")
        return Scores(
            model=original_name(decoder),
            criterion=name,
            unit=unit,
            baseline=measurement.baseline,
            units=list(sizes),
            values=values,
            calibration={} if input_ids is None else calibration or fingerprint(input_ids),
            parameters=decoder.sizes().parameters(),
            unit_parameters=list(sizes.values()),
            options={key: options.get(key, default) for key, default in defaults.items() if key not in variant.without},
        )

    return scores


def _criterion(
    name: str, needs: Needs, measure: Callable[..., Measurement], variants: Mapping[str, Variant] | None = None,
    **options: Accepted,
) -> Criterion:  # fmt: skip
    """A criterion that `measure` computes; its first variant is the default."""
    variants = variants or {"corrected": Variant()}
    if len(variants) > 1:
        options["variant"] = OneOf(variants)
    if needs == "tokens":
        options["memory"] = AtLeast(1)
    return Criterion(name, needs, _as_scores(name, measure, variants), options, variants=variants)


_TOKENS = OneOf(("mean", "last"))
_SUMMED = OneOf(REDUCTIONS)
_REPORTS = OneOf(("ppl", "loss"))
_BLOCKS = ("block",)
_PPL_OPTIONS = {
    name: None
    for name, parameter in inspect.signature(perplexity_scores).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name not in ("calibration", "progress")
}

CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        Criterion("ppl", "tokens", perplexity_scores, _PPL_OPTIONS),
        _criterion("first-order-ppl", "gradients", partial(predicted_perplexities, 1), report=_REPORTS),
        _criterion("second-order-ppl", "gradients", partial(predicted_perplexities, 2), report=_REPORTS),
        Criterion(
            after_repair.NAME,
            "tokens",
            after_repair.after_repair_scores,
            {"form": OneOf(FORMS), "fit_ids": None, **_PPL_OPTIONS},
        ),
        _criterion(
            "taylor",
            "gradients",
            taylor.taylor,
            {"corrected": Variant(without=("batch",)), "faithful": Variant(fixed={"salience": "first"})},
            salience=OneOf(taylor.SALIENCES),
            within=_SUMMED,
            across=_SUMMED,
            batch=AtLeast(1),
        ),
        _criterion("magnitude", "nothing", magnitude.magnitude, power=OneOf((1, 2)), within=_SUMMED, across=_SUMMED),
        _criterion("weight-norm", "nothing", magnitude.weight_norm, norm=OneOf(("frobenius", "rms"))),
        _criterion(
            "block-influence",
            "tokens",
            similarity.block_influence,
            {
                "corrected": Variant(without=("batch",)),
                "faithful": Variant(_BLOCKS, without=("batch", "tokens")),
                "optipfair": Variant(fixed={"tokens": "mean"}),
            },
            tokens=_TOKENS,
            batch=AtLeast(1),
        ),
        _criterion(
            "angular",
            "tokens",
            similarity.angular,
            {"corrected": Variant(), "faithful": Variant(_BLOCKS, fixed={"tokens": "last"})},
            tokens=_TOKENS,
        ),
        _criterion(
            "relative-magnitude",
            "tokens",
            similarity.relative_magnitude,
            tokens=_TOKENS,
            over=OneOf(("output", "input")),
        ),
        _criterion("first", "nothing", static.first),
        _criterion("last", "nothing", static.last),
        _criterion("middle", "nothing", static.middle),
        _criterion("every", "nothing", static.every, every=AtLeast(1)),
        _criterion("random", "nothing", static.random, seed=AtLeast(0)),
    )
}
"""By name; the paper's own choice first."""
