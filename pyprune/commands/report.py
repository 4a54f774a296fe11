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
        "Draw the results of other commands from their files. Nothing is measured. --out decides the form: a "
        "directory gets a page with figures, FILE.png or FILE.svg one figure. results.json of compare or recipe gives "
        "its page; a comparison also gives perplexity against tokens/s (.svg). A pruning, a pruned directory, or a "
        "comparison with --cut gives a diagram of the removed blocks, heads and neurons (.svg). Scores give bar "
        "charts, several scores a heat map of ranks (.png or a page). Files of `python -m bench.gpu_check`, also with "
        "comparisons of the paper's models, give the paper's tables and figures of speed and memory, with our numbers "
        "beside the paper's.",
        "pyprune report compare-135m/results.json --out compare-again",
        "pyprune report compare-135m/results.json --out speed-dark.svg --dark",
        "pyprune report smollm2-depth20 --out cut.svg",
        "pyprune report boolq.json sms.json --count 6 --out heat.png",
        "pyprune report mission/gpu_check.json sweep/gpu_check.json --out paper",
    )
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="results.json of compare or recipe (one); or any number of: scores of score --out, gpu_check.json, or "
        "prunings, as .json files or directories that prune wrote",
    )
    add_amount(parser, "to be marked in figures of scores")
    parser.add_argument(
        "--protect",
        metavar="WHICH",
        help="blocks never marked: first=N, last=N and indices, with commas (default: none)",
    )
    parser.add_argument(
        "--paper",
        action="store_true",
        help="draw the paper's tables and figures from comparisons alone (default: only with a gpu_check.json)",
    )
    parser.add_argument(
        "--dark", action="store_true", help="perplexity against tokens/s in colours for a dark page (default: light)"
    )
    parser.add_argument(
        "--cut", action="store_true", help="draw what each row of a comparison removed (default: only for prunings)"
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="the original model of a pruning's .json, for its sizes; no weights are read (default: the config.json "
        "beside it)",
    )
    parser.add_argument(
        "--out",
        metavar="PATH",
        required=True,
        help="new or empty directory, .png file for scores, or .svg file for a pruning or a comparison (required)",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Draw figures and pages from result files."""
    from pyprune.study.redraw import redraw

    drawing = {"dark": options.dark, "cut": options.cut, "model": options.model}
    written = redraw(options.files, options.out, options.paper, **drawing, **chosen_amount(options))
    if options.json:
        return print_json({"written": [str(path) for path in written]})
    for path in written:
        print(path)
