"""`pyprune report`: figures and pages from result files alone."""

from __future__ import annotations

import argparse
from typing import Any

from pyprune.commands.inputs import chosen_amount
from pyprune.commands.options import add_amount, add_json, command
from pyprune.commands.output import print_json


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "report",
        "draw figures and pages from result files",
        "Draw what other commands measured, from their files alone: the page of a comparison from its results.json, a "
        "bar chart of scores, and of several scores a map of each unit's place under each. A name in .png gives one "
        "figure, any other a directory with a page.",
        "pyprune report compare-135m/results.json --out compare-again",
        "pyprune report boolq.json sms.json --count 6 --out heat.png",
    )
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="results of compare (one file), or scores of score --out (any number)"
    )
    add_amount(parser, "scores' figures mark")
    parser.add_argument(
        "--protect",
        metavar="WHICH",
        help="blocks that stay in that choice: first=N, last=N and indices, with commas (default: none)",
    )
    parser.add_argument(
        "--out", metavar="PATH", required=True, help="a .png file for scores, or a new or empty directory (required)"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Draw figures and pages from result files."""
    from pyprune.study.redraw import redraw

    written = redraw(options.files, options.out, **chosen_amount(options))
    if options.json:
        return print_json({"written": [str(path) for path in written]})
    for path in written:
        print(path)
