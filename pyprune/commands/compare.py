"""`pyprune compare`: depth and width pruning of one model, side by side."""

from __future__ import annotations

import argparse
import os
from typing import Any

from pyprune.commands.inputs import torch_dtype
from pyprune.commands.options import (
    MODEL_HELP,
    add_device,
    add_dtype,
    add_json,
    add_text,
    at_least,
    command,
    numbers,
    words,
)
from pyprune.commands.output import Bar, console, print_json


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
    parser.add_argument(
        "--ratios",
        type=words,
        default=["20%"],
        metavar="P%,Q%",
        help="shares of all parameters to remove (default: 20%%)",
    )
    parser.add_argument(
        "--methods",
        type=words,
        default=["wanda-sp"],
        metavar="A,B",
        help="width methods, a row each: wanda-sp, flap, llm-pruner, magnitude-sp, head-gate (default: wanda-sp)",
    )
    parser.add_argument(
        "--batch",
        type=numbers("batch sizes", "1,8"),
        default=[1, 8],
        metavar="M,N",
        help="batch sizes, in prompts (default: 1,8)",
    )
    parser.add_argument(
        "--protocol",
        choices=("quick", "paper"),
        default="quick",
        help="quick: 16 new tokens, 3 runs after 1 warm-up, perplexity on 4096 tokens; paper: 128 and 512 new tokens, "
        "20 runs after 10, perplexity on 32768 tokens, which takes hours on a small machine (default: quick)",
    )
    add_dtype(
        parser,
        "bfloat16",
        "dtype of all rows when timed and their perplexity is taken; scoring keeps the checkpoint's",
    )
    add_device(parser)
    parser.add_argument(
        "--pad-to",
        type=at_least(2),
        default=64,
        metavar="N",
        help="multiple of neurons for the padded row (default: 64)",
    )
    add_text(parser)
    parser.add_argument(
        "--eval-text",
        metavar="FILE",
        help="text for the perplexity, named like --text but another one (default: demo:boolq)",
    )
    parser.add_argument("--out", metavar="DIR", help="new or empty directory for the report (default: none)")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Measure depth and width pruning of one model side by side."""
    from pyprune.study.compare import compare as run
    from pyprune.study.report import terminal

    with Bar() as bar:
        comparison = run(
            options.model,
            ratios=options.ratios,
            methods=options.methods,
            batches=options.batch,
            protocol=options.protocol,
            dtype=torch_dtype(options.dtype),
            text=options.text,
            eval_text=options.eval_text,
            samples=options.samples,
            seq_len=options.seq_len,
            seed=options.seed,
            field=options.field,
            packing=options.packing,
            bos=options.bos,
            pad_multiple=options.pad_to,
            out=options.out,
            progress=bar,
            device=options.device,
        )
    if options.json:
        return print_json({**comparison.results, "table": comparison.table()})
    screen = console()
    for part in terminal(comparison.results):
        screen.print(part)
    if options.out is not None:
        screen.print(f"Report written: {os.path.join(options.out, 'index.html')}", markup=False, highlight=False)
