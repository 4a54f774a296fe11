"""The options that choose a criterion, for every command that scores."""

from __future__ import annotations

import argparse
from typing import Any

from pyprune.commands.options import at_least
from pyprune.errors import InputError

DEFAULT = "ppl"
REPAIR_SAMPLES = 128

_OPTIONS = (
    "form", "variant", "tokens", "power", "norm", "over", "every", "salience", "within", "across", "batch", "report",
)  # fmt: skip


def add_criterion(parser: argparse.ArgumentParser) -> None:
    """--criterion, --protect and the options of single criteria."""
    parser.add_argument(
        "--criterion",
        metavar="NAME",
        help="ppl (exact), first-order-ppl, second-order-ppl, ppl-after-repair (perplexity once repaired), taylor, "
        "magnitude, weight-norm, block-influence, angular, relative-magnitude, first, last, middle, every, random "
        f"(default: {DEFAULT})",
    )
    parser.add_argument(
        "--protect",
        metavar="WHICH",
        help="blocks to keep: first=N, last=N and indices, separated by commas; first=4,last=2 turns magnitude and "
        "taylor into the paper's Mag+ and Taylor+ (default: none)",
    )
    group = parser.add_argument_group("options of single criteria")
    group.add_argument(
        "--form",
        choices=("linear", "mean-update"),
        help="ppl-after-repair: repair each unit by a linear map of the output before it (ReplaceMe) or by the mean "
        "of its missing update (default: linear)",
    )
    group.add_argument(
        "--repair-samples",
        type=at_least(1),
        metavar="N",
        help="ppl-after-repair: calibration windows to fit repairs on, other than those that score; prune --repair: "
        f"windows that the repair is fitted on (default: {REPAIR_SAMPLES}; after the choice as --samples of repair)",
    )
    group.add_argument(
        "--variant",
        metavar="V",
        help="taylor, block-influence, angular: faithful follows the published code where it differs from the formula; "
        "block-influence also has optipfair (default: corrected)",
    )
    group.add_argument(
        "--tokens",
        choices=("mean", "last"),
        help="block-influence, angular, relative-magnitude: the mean over all tokens, or each sample's last token "
        "(default: mean)",
    )
    group.add_argument(
        "--power", type=at_least(1), metavar="P", help="magnitude: the exponent in |W|^P, 1 or 2 (default: 1)"
    )
    group.add_argument("--norm", choices=("frobenius", "rms"), help="weight-norm: the norm (default: frobenius)")
    group.add_argument(
        "--over",
        choices=("output", "input"),
        help="relative-magnitude: the state that the update is compared with (default: output)",
    )
    group.add_argument("--every", type=at_least(1), metavar="K", help="every: remove each K-th unit (default: 2)")
    group.add_argument(
        "--salience",
        choices=("first", "per-sample", "vectorized", "second", "mixed"),
        help="taylor: how weights and gradients become a score (default: first)",
    )
    for name, what in (("within", "a matrix's output neurons"), ("across", "a unit's matrices")):
        group.add_argument(
            f"--{name}",
            choices=("sum", "mean", "max", "prod"),
            help=f"magnitude, taylor: how to combine the scores of {what} (default: sum)",
        )
    group.add_argument(
        "--batch",
        type=at_least(1),
        metavar="N",
        help="faithful and optipfair variants: samples per batch (default: 10)",
    )
    group.add_argument(
        "--report",
        choices=("ppl", "loss"),
        help="first-order-ppl, second-order-ppl: report the predicted perplexity or the change of the loss in nats "
        "(default: ppl)",
    )


def chosen_criterion(options: argparse.Namespace, unit: str) -> tuple[Any, dict[str, Any]]:
    """The criterion that the options name, and what they say of it; InputError for what it does not take."""
    from pyprune.scoring.criteria import criterion_named

    criterion = criterion_named(options.criterion or DEFAULT)
    settings = {name: getattr(options, name) for name in _OPTIONS if getattr(options, name) is not None}
    if "seed" in criterion.options:
        settings["seed"] = options.seed
    criterion.check(unit, settings)
    repairs = "fit_ids" in criterion.options or getattr(options, "repair", None) is not None
    if options.repair_samples is not None and not repairs:
        raise InputError(
            f"--repair-samples {options.repair_samples}: needs --repair of prune or --criterion ppl-after-repair"
        )
    return criterion, settings


def refuse_criterion(options: argparse.Namespace, reason: str, but: tuple[str, ...] = ()) -> None:
    """InputError for any of these options, --protect and those named aside, where nothing is scored."""
    for name in ("criterion", *_OPTIONS):
        if name not in but and getattr(options, name) is not None:
            raise InputError(f"--{name} {getattr(options, name)}: {reason}")
