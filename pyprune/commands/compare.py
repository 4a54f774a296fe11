"""`pyprune compare`: depth and width pruning of one model, side by side."""

from __future__ import annotations

import argparse
import os
from functools import partial
from typing import Any

from pyprune.commands.options import (
    MODEL_HELP,
    SEARCHES,
    UNITS,
    WIDTH_METHODS,
    add_device,
    add_dtype,
    add_json,
    add_option,
    add_option_of,
    add_text,
    at_least,
    comma_separated,
    command,
    numbers,
)
from pyprune.commands.output import Bar, console, print_json
from pyprune.study.config import CompareConfig
from pyprune.study.protocols import PROTOCOLS


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "compare",
        "measure depth and width pruning of a model side by side",
        "Prune one model by depth (--criterion) and by width (--methods) to the same number of parameters. Measure "
        "each row's perplexity on held-out text, its accuracy on --tasks, and its latency and throughput under Hugging "
        "Face transformers and under pyprune, in interleaved rounds. Latency is the time to generate M*L tokens for M "
        "prompts; throughput is M*L divided by it. --with adds checkpoints as rows. A row that does not fit into "
        "memory says OOM. --out writes a page, figures, a CSV table and all raw samples.",
        "pyprune compare smollm2-135m --ratios 20% --batch 1,8 --out compare-135m",
        "pyprune compare smollm2-135m --protocol paper --ratios 20%,35% --text novels.txt --eval-text wiki.txt "
        "--out paper-135m",
        "pyprune compare smollm2-135m --depth-criteria ppl,taylor+ --with repaired=repaired-135m --tasks boolq,piqa "
        "--limit 100 --out quality-135m",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    option = partial(add_option_of, parser, CompareConfig)
    option("ratios", "shares of all parameters to remove", type=comma_separated, metavar="P%,Q%")
    option("methods", f"width methods, one row for each: {WIDTH_METHODS}", type=comma_separated, metavar="A,B")
    option("batches", "batch sizes: prompts at a time", type=numbers("batch sizes", "1,8"), metavar="M,N")
    option(
        "protocol",
        "quick: 16 new tokens, 3 runs after 1 warm-up, perplexity on 4096 tokens; paper: 128 and 512 new tokens, "
        "20 runs after 10, perplexity on 32768 tokens, which takes hours on a small machine",
        choices=tuple(PROTOCOLS),
    )
    add_dtype(
        parser,
        str(CompareConfig.dtype),
        "dtype in which all rows are timed and evaluated; scoring keeps the checkpoint's",
    )
    add_device(parser, str(CompareConfig.device))
    option("pad_multiple", "pad the FFN widths of padded rows to a multiple of N", type=at_least(2), metavar="N")
    add_text(parser)
    option(
        "eval_text",
        "held-out text for the perplexity: another source, as for --text",
        shown="demo:boolq",
        metavar="FILE",
    )
    group = parser.add_argument_group("depth rows")
    depth = partial(add_option_of, group, CompareConfig)
    depth("criterion", "criterion that ranks the units, as in pyprune score; NAME+ keeps the first four and the last "
          "two blocks, as the paper's Taylor+ (taylor+) and Mag+ (magnitude+) do", metavar="NAME")  # fmt: skip
    depth("depth_criteria", "several criteria instead of --criterion, one depth row for each", type=comma_separated,
          metavar="A,B")  # fmt: skip
    depth("unit", "what is removed: whole blocks, or attention or FFN sublayers", choices=UNITS)
    depth("protect", "blocks that stay: first=N, last=N and indices, with commas", metavar="WHICH")
    depth("search", "one-shot: the units that one ranking puts first; greedy: the rest is ranked again after each "
          "removal; window: consecutive blocks", choices=SEARCHES)  # fmt: skip
    group = parser.add_argument_group("further rows and measures")
    group.add_argument(
        "--with",
        type=named_checkpoint,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="add a checkpoint as a row called NAME: pruned, repaired or retrained by any tool, with the same "
        "vocabulary; may be repeated (default: none)",
    )
    more = partial(add_option_of, group, CompareConfig)
    more("tasks", "lm-eval tasks, or paper for the paper's seven: zero-shot accuracy of each row",
         type=comma_separated, metavar="NAME,NAME")  # fmt: skip
    more("limit", "use the first N documents of each task", shown="all", type=at_least(1), metavar="N")
    more("data", "directory with the tasks' data", shown="installed packages, else the hub", metavar="DIR")
    add_option(
        parser,
        "--out",
        "new or empty directory for the report; without it the table alone is "
        "printed, and an interrupted run begins anew",
        metavar="DIR",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted run from DIR.unfinished beside --out: finished scores, evaluations and timings "
        "are not repeated (default: off)",
    )
    add_json(parser)


def named_checkpoint(text: str) -> tuple[str, str]:
    name, equals, spec = text.partition("=")
    if not (name.strip() and equals and spec):
        raise argparse.ArgumentTypeError(f"{text!r}: NAME=DIR is expected, such as repaired=repaired-135m")
    return name.strip(), spec


def run(options: argparse.Namespace) -> None:
    """Measure depth and width pruning of one model side by side."""
    from pyprune.study.compare import compare
    from pyprune.study.report import terminal

    with Bar() as bar:
        comparison = compare(
            options.model,
            CompareConfig.from_options(options),
            out=options.out,
            resume=options.resume,
            progress=bar,
        )
    if options.json:
        return print_json({**comparison.results, "table": comparison.table()})
    screen = console()
    for part in terminal(comparison.results):
        screen.print(part)
    if options.out is not None:
        screen.print(f"Report written: {os.path.join(options.out, 'index.html')}", markup=False, highlight=False)
