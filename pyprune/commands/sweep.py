"""`pyprune sweep`: time, bandwidth and FLOP/s of a linear against its width."""

from __future__ import annotations

import argparse
import os
import re
from statistics import median
from typing import Any

from pyprune.commands.options import (
    MOST,
    add_device,
    add_dtype,
    add_hidden,
    add_json,
    add_option,
    add_rows,
    at_least,
    command,
)
from pyprune.commands.output import Bar, console, print_json, print_table


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "sweep",
        "time a linear layer over a range of widths",
        "Time one linear layer of a width-pruned FFN at every width in a range, as gate/up (hidden -> width) and as "
        "down (width -> hidden), in torch, in torch with padded weights, and in pyprune. --out gets the raw samples, a "
        "table, and a figure that marks the widths of the paper's Table 1. To resume an interrupted run, repeat the "
        "command. This has never run on a GPU.",
        "pyprune sweep --widths 7000:7300 --hidden 4096 --rows 1,8,64,1024 --dtype bf16 --out sweep-7155",
        "pyprune sweep --widths 1100:1200:4 --hidden 576 --rows 1,64 --rounds 5",
    )
    parser.add_argument(
        "--widths",
        type=widths,
        metavar="A:B[:S]",
        required=True,
        help="FFN widths from A to B in steps of S (required)",
    )
    add_hidden(parser)
    add_rows(parser, [1, 8, 64, 1024], "rows of activations (batch times tokens)")
    add_dtype(parser, "bf16", "dtype of weights and activations")
    add_option(parser, "--multiple", "multiple that torch's weights are padded to", 64, type=at_least(1), metavar="N")
    add_option(parser, "--rounds", "timed rounds for every width", 9, type=at_least(1), metavar="N")
    add_device(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="new or empty directory for JSON, CSV and PNG (default: not saved)"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Time a linear at every width of a range, and say what padding and pyprune gain."""
    from pyprune.study.sweep import Settings
    from pyprune.study.sweep import sweep as run_sweep

    start, stop, step = options.widths
    settings = Settings(
        start, stop, step, options.hidden, tuple(options.rows), options.dtype, options.multiple, options.rounds,
        options.device,
    )  # fmt: skip
    with Bar() as bar:
        result = run_sweep(settings, options.out, bar)
    if options.json:
        return print_json({**result.results, "table": result.table()})
    lines, rows = result.table(), []
    for role, count, side in dict.fromkeys((line["role"], line["rows"], line["side"]) for line in lines):
        side_lines = [line for line in lines if (line["role"], line["rows"], line["side"]) == (role, count, side)]
        gains = [line["ratio_to_torch"] for line in side_lines]
        rows.append(
            [
                role, str(count), side, f"{1e3 * median(line['seconds'] for line in side_lines):.3f}",
                f"{min(line['bytes_per_s'] for line in side_lines) / 1e9:.1f} to "
                f"{max(line['bytes_per_s'] for line in side_lines) / 1e9:.1f}",
                f"{min(line['flop_per_s'] for line in side_lines) / 1e9:.1f} to "
                f"{max(line['flop_per_s'] for line in side_lines) / 1e9:.1f}",
                f"{min(gains):.2f} to {max(gains):.2f}x",
            ]
        )  # fmt: skip
    header = ["linear", "rows", "side", "median, ms", "GB/s", "GFLOP/s", "over torch"]
    print_table(header, rows, f"Widths {start} to {stop} by {step}, hidden size {options.hidden}: over all widths")
    if options.out is not None:
        console().print(f"Written: {os.path.join(options.out, 'sweep.png')}", markup=False, highlight=False)


def widths(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"([0-9]+):([0-9]+)(?::([0-9]+))?", text, re.ASCII)
    bounds = [int(part or 1) for part in match.groups()] if match else []
    if not bounds or not all(1 <= number <= MOST for number in bounds) or bounds[1] < bounds[0]:
        raise argparse.ArgumentTypeError(f"{text!r}: widths from 1 such as 7000:7300 or 7000:7300:4 are expected")
    return bounds[0], bounds[1], bounds[2]
