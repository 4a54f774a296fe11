"""`pyprune frontier`: which model to take under a latency or a size."""

from __future__ import annotations

import argparse
import os
from typing import Any

from pyprune.commands.options import add_json, add_option, at_least, command, number
from pyprune.commands.output import console, print_json, print_table


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "frontier",
        "pick the best compared model within a latency or size limit",
        "Compare the models of one or more comparisons: quality (perplexity, or mean accuracy over tasks) against "
        "latency and size. Models on the Pareto front are marked: no other is both better and faster, or both better "
        "and smaller. With --latency or --size, name the best model within that limit. The comparisons must share "
        "model, text, dtype, machine, kernels and versions.",
        "pyprune frontier compare-135m --latency 150",
        "pyprune frontier compare-20 compare-35/results.json --size 220 --quality accuracy --out frontier-135m",
    )
    parser.add_argument(
        "results", metavar="RESULTS", nargs="+", help="directories that compare --out wrote, or their results.json"
    )
    limits = parser.add_mutually_exclusive_group()
    above = number(0, 1e12)
    limits.add_argument("--latency", type=above, metavar="MS", help="at most MS ms for a whole batch (default: any)")
    limits.add_argument("--size", type=above, metavar="MB", help="at most MB (10^6 bytes) of weights (default: any)")
    add_option(parser, "--batch", "compare latencies at this batch size", shown="the smallest that all results have",
               type=at_least(1), metavar="M")  # fmt: skip
    add_option(parser, "--new-tokens", "compare latencies at this output length", type=at_least(1), metavar="L",
               shown="the shortest that all results have")  # fmt: skip
    add_option(parser, "--engine", "compare latencies under this engine", "pyprune", choices=("pyprune", "hf"))
    add_option(parser, "--quality", "measure of quality: perplexity, or mean accuracy over tasks",
               shown="ppl if all results have it", choices=("ppl", "accuracy"))  # fmt: skip
    add_option(parser, "--out", "new or empty directory for a page, a figure, CSV and JSON", metavar="DIR")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Say which model of several comparisons to take under a latency or a size."""
    from pyprune.study.destination import require_directory
    from pyprune.study.frontier import frontier
    from pyprune.study.frontier_report import cells, save

    if options.out is not None:
        require_directory(options.out)
    front = frontier(
        options.results,
        latency_ms=options.latency,
        size_mb=options.size,
        batch=options.batch,
        output_tokens=options.new_tokens,
        engine=options.engine,
        quality=options.quality,
    )
    if options.out is not None:
        save(front, options.out)
    if options.json:
        return print_json(front.to_dict())
    title = f"{front.model}: batch {front.batch}, {front.output_tokens} new tokens, {front.engine}"
    print_table(*cells(front), title)
    screen = console()
    screen.print(front.sentence, markup=False, highlight=False)
    if options.out is not None:
        screen.print(f"Written: {os.path.join(options.out, 'index.html')}", markup=False, highlight=False)
    return None
