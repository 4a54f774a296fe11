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
        "Draw what other commands measured, from their files alone. One results.json of compare gives its page again, "
        "or with --out FILE.svg one figure of perplexity against tokens/s. Scores give bar charts, and several scores "
        "a map of the units' places. A name in .png gives one figure, any other a directory with a page. Files of "
        "`python -m bench.gpu_check`, with comparisons of the paper's models if you have some, give the paper's tables "
        "and figures of speed and memory with our numbers beside the paper's.",
        "pyprune report compare-135m/results.json --out compare-again",
        "pyprune report compare-135m/results.json --out speed-dark.svg --dark",
        "pyprune report boolq.json sms.json --count 6 --out heat.png",
        "pyprune report mission/gpu_check.json sweep/gpu_check.json --out paper",
    )
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="results of compare (one file), scores of score --out (any number), or gpu_check.json (any number)",
    )
    add_amount(parser, "scores' figures mark")
    parser.add_argument(
        "--protect",
        metavar="WHICH",
        help="blocks that stay in that choice: first=N, last=N and indices, with commas (default: none)",
    )
    parser.add_argument(
        "--paper",
        action="store_true",
        help="the paper's tables and figures from comparisons alone (default: only where a gpu_check.json is there)",
    )
    parser.add_argument(
        "--dark", action="store_true", help="colours for a dark page, with an .svg (default: for a light one)"
    )
    parser.add_argument(
        "--out",
        metavar="PATH",
        required=True,
        help="a new or empty directory, a .png file for scores, an .svg file for one comparison (required)",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Draw figures and pages from result files."""
    from pyprune.study.redraw import redraw

    written = redraw(options.files, options.out, options.paper, options.dark, **chosen_amount(options))
    if options.json:
        return print_json({"written": [str(path) for path in written]})
    for path in written:
        print(path)
