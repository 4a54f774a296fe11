"""`pyprune compare`: depth and width pruning of one model, side by side."""

from __future__ import annotations

import argparse
import os
from functools import partial
from typing import Any

from pyprune.commands.options import (
    MODEL_HELP,
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
        "measure depth and width pruning of one model side by side",
        "Prune one model in depth (by perplexity) and in width (by --methods, as it comes and padded) to the same "
        "number of parameters, and measure perplexity on held-out text, latency and throughput of all of them under "
        "Hugging Face transformers and under pyprune, interleaved. Latency is the time for M prompts to become M*L "
        "new tokens, in seconds; throughput is M*L divided by it. --out writes raw samples, CSV, figures and a page.",
        "pyprune compare smollm2-135m --ratios 20% --batch 1,8 --out compare-135m",
        "pyprune compare smollm2-135m --protocol paper --ratios 20%,35% --text novels.txt --eval-text wiki.txt",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    option = partial(add_option_of, parser, CompareConfig)
    option("ratios", "shares of all parameters to remove", type=comma_separated, metavar="P%,Q%")
    option("methods", f"width methods, a row each: {WIDTH_METHODS}", type=comma_separated, metavar="A,B")
    option("batches", "batch sizes, in prompts", type=numbers("batch sizes", "1,8"), metavar="M,N")
    option(
        "protocol",
        "quick: 16 new tokens, 3 runs after 1 warm-up, perplexity on 4096 tokens; paper: 128 and 512 new tokens, "
        "20 runs after 10, perplexity on 32768 tokens, which takes hours on a small machine",
        choices=tuple(PROTOCOLS),
    )
    add_dtype(
        parser,
        str(CompareConfig.dtype),
        "dtype of all rows when timed and their perplexity is taken; scoring keeps the checkpoint's",
    )
    add_device(parser, str(CompareConfig.device))
    option("pad_multiple", "multiple of neurons for the padded row", type=at_least(2), metavar="N")
    add_text(parser)
    option(
        "eval_text",
        "text for the perplexity, named like --text but another one",
        shown="demo:boolq",
        metavar="FILE",
    )
    add_option(parser, "--out", "new or empty directory for the report", metavar="DIR")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Measure depth and width pruning of one model side by side."""
    from pyprune.study.compare import compare
    from pyprune.study.report import terminal

    with Bar() as bar:
        comparison = compare(options.model, CompareConfig.from_options(options), out=options.out, progress=bar)
    if options.json:
        return print_json({**comparison.results, "table": comparison.table()})
    screen = console()
    for part in terminal(comparison.results):
        screen.print(part)
    if options.out is not None:
        screen.print(f"Report written: {os.path.join(options.out, 'index.html')}", markup=False, highlight=False)
