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
        "or with --out FILE.svg one figure of perplexity against tokens/s. A pruning, or a directory that prune wrote, "
        "gives a drawing of the blocks, heads and neurons that were cut, as does a comparison with --cut. Scores give "
        "bar charts, and several scores a map of the units' places. A name in .png gives one figure, any other a "
        "directory with a page. Files of `python -m bench.gpu_check`, with comparisons of the paper's models if you "
        "have some, give the paper's tables and figures of speed and memory with our numbers beside the paper's.",
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
        help="results of compare (one file), scores of score --out (any number), gpu_check.json (any number), or "
        "prunings: .json files and directories that prune wrote (any number)",
    )
    add_amount(parser, "to be marked in figures of scores")
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
        "--dark", action="store_true", help="colours for a dark page, of perplexity against tokens/s (default: light)"
    )
    parser.add_argument(
        "--cut", action="store_true", help="of a comparison: draw what each row cut (default: only of a pruning)"
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="model whose sizes a pruning's .json is drawn with; no weights are read (default: the configuration "
        "beside it)",
    )
    parser.add_argument(
        "--out",
        metavar="PATH",
        required=True,
        help="a new or empty directory, a .png file for scores, an .svg file for a pruning or a comparison (required)",
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
