"""The options of width pruning, and what they ask for."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from pyprune.commands.inputs import calibration_windows, require_texts
from pyprune.commands.options import WIDTH_METHODS, at_least
from pyprune.commands.output import Bar
from pyprune.errors import InputError
from pyprune.study.config import CompareConfig

DEFAULT = CompareConfig.methods[0]
_OPTIONS = ("method", "align", "units", "remove_groups")


def add_narrowing(parser: argparse.ArgumentParser) -> None:
    """The options that say how --width narrows; --variant and --protect are those of the criteria."""
    group = parser.add_argument_group("options of --width")
    group.add_argument(
        "--method",
        metavar="NAME",
        help=f"{WIDTH_METHODS} (default: {DEFAULT}); --variant takes a word of each choice, separated by commas, by "
        "default the first: flap WIFV|IFV|WIFN, AL-AM|AL-MM|UL-UM|UL-MM, bias|no-bias; llm-pruner param_first|"
        "vectorize|param_second|param_mix, local|global; head-gate local|global; wanda-sp, flap and llm-pruner "
        "corrected|faithful",
    )
    group.add_argument(
        "--align",
        type=at_least(1),
        metavar="N",
        help="make FFN widths multiples of N (default: any width)",
    )
    group.add_argument(
        "--units",
        choices=("both", "heads", "neurons"),
        help="what to remove: heads (whole KV groups), neurons or both (default: both)",
    )
    group.add_argument(
        "--remove-groups",
        type=at_least(0),
        metavar="N",
        help="total of KV groups to remove, for flap's AL-MM and UL-MM and head-gate's global (default: their share)",
    )


def refuse_narrowing(options: argparse.Namespace, reason: str) -> None:
    """InputError for any of these options where nothing is narrowed."""
    for name in _OPTIONS:
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: {reason}")


def require_narrowable(options: argparse.Namespace) -> None:
    """Raise InputError now for an unknown method or variant, and for texts that it needs and that are missing."""
    from pyprune.pruning.width import METHODS, variant_options

    variant_options(options.method or DEFAULT, options.variant)
    if METHODS[options.method or DEFAULT].calibrated:
        require_texts(options)
    elif options.text is not None:
        raise InputError(f"--text {options.text}: method {options.method} reads no text")


def narrowing_dry_run(options: argparse.Namespace, decoder: Any, ratio: float) -> Any:
    """A pruning of the size that will come: what cannot be had or saved is refused before the slow part."""
    from pyprune.pruning.width import dry_run

    return dry_run(decoder, options.method or DEFAULT, ratio=ratio, **_settings(options))


def measured_narrowing(options: argparse.Namespace, decoder: Any, ratio: float, bar: Bar) -> Any:
    """The pruning that the options ask for, on the calibration text that they name."""
    from pyprune import pruning
    from pyprune.pruning.width import METHODS

    method = options.method or DEFAULT
    settings = _settings(options)
    if METHODS[method].calibrated:
        settings["calibration"] = calibration_windows(options, decoder).input_ids
    return pruning.width(decoder, method, ratio=ratio, progress=partial(bar, method), **settings)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = ("variant", "align", "units", "protect", "remove_groups")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}
