"""`pyprune advise-width`: what to round an FFN width to on this machine, what it costs and what it gains."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from pyprune.commands.options import (
    WIDTH_ROWS,
    add_device,
    add_dtype,
    add_hidden,
    add_json,
    add_rows,
    at_least,
    command,
)
from pyprune.commands.output import Bar, console, print_json, print_table

if TYPE_CHECKING:
    from pyprune.study.measure import Speedup


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "advise-width",
        "recommend an FFN width for this machine",
        "Time the linear layers of an FFN at its width and at the multiples above it, in torch and in pyprune. "
        "Recommend the narrowest width that is about as fast as the best, with the cost and the gain of padding. "
        "Results are kept in $PYPRUNE_WIDTHS, else in pyprune/widths.json in the user's cache directory. This has "
        "never run on a GPU.",
        "pyprune advise-width 7155",
        "pyprune advise-width 1229 --hidden 576 --rows 1 --dtype fp32 --json",
    )
    parser.add_argument("width", type=at_least(1), metavar="WIDTH", help="the FFN width after pruning")
    add_hidden(parser)
    add_rows(parser, WIDTH_ROWS, "rows of activations (batch times tokens)")
    add_dtype(parser, "bf16", "dtype of weights and activations")
    add_device(parser)
    parser.add_argument(
        "--again", action="store_true", help="measure again instead of using stored results (default: off)"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Say what to round a width to here, from measured times."""
    from pyprune.study.width_advice import advise, location

    with Bar() as bar:
        advice = advise(
            options.width,
            options.hidden,
            options.rows,
            options.dtype,
            options.device,
            again=options.again,
            progress=bar,
        )
    if options.json:
        return print_json(advice.to_json())
    question = advice.question
    for side in advice.seconds:
        rows = []
        for width, multiple in advice.choices.items():
            cost = advice.cost(width)
            gains = [gain_text(advice.gain(side, count, width)) for count in question.rows]
            mark = " *" if width == advice.best else ""
            rows.append([f"{width}{mark}", str(multiple), f"{cost['bytes'] / 2**10:.0f} ({cost['share']:.2%})", *gains])
        header = [
            "width",
            "multiple",
            "KiB a block",
            *(f"{count} row{'s' if count > 1 else ''}" for count in question.rows),
        ]
        size = f"FFN {options.width} x {options.hidden} in {options.dtype}"
        print_table(header, rows, f"{side}: {size} on {question.device}, speed-up over the unpadded width")
    sentence = f"Round {options.width} to {advice.best} (* above; pyprune pad --multiple {advice.multiple})."
    if advice.best == options.width:
        sentence = f"Leave {options.width} as it is: no multiple is measurably faster here."
    console().print(f"{sentence} Kept in {location()}.", markup=False, highlight=False, soft_wrap=True)


def gain_text(gain: Speedup) -> str:
    """The median, and its 95 % interval where there are rounds enough."""
    if gain["low"] is None:
        return f"{gain['median']:.2f}"
    return f"{gain['median']:.2f} ({gain['low']:.2f} to {gain['high']:.2f})"
