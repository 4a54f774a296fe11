"""`pyprune samples`: texts that a model and its pruned forms write on the same prompts."""

from __future__ import annotations

import argparse
import os
from typing import Any

from pyprune.commands.inputs import chosen_device, quiet_transformers, torch_dtype
from pyprune.commands.options import (
    MODEL_HELP,
    MOST,
    add_device,
    add_json,
    add_option,
    add_stored_dtype,
    at_least,
    command,
    number,
)
from pyprune.commands.output import Bar, print_json, print_table


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "samples",
        "generate text from the same prompts with a model and its pruned versions",
        "Let a model and its pruned versions continue the same prompts with the same seed. By default prompts and "
        "sampling are the paper's. The texts are shown side by side, with each model's share of repeated 4-grams. "
        "--out writes JSON, a Markdown table and a page.",
        "pyprune samples smollm2-135m pruned-135m --out samples-135m",
        "pyprune samples smollm2-135m pruned-135m --prompt 'Once upon a time' --draws 8 --max-new-tokens 128 --json",
    )
    parser.add_argument("model", metavar="ORIGINAL", help=MODEL_HELP)
    parser.add_argument("others", metavar="DIR", nargs="*", help="further models, such as directories that prune wrote")
    add_option(parser, "--prompt", "text to continue, instead of the paper's; may be repeated",
               shown="the paper's three", action="append", metavar="TEXT")  # fmt: skip
    add_option(parser, "--draws", "texts per prompt and model", 1, type=at_least(1), metavar="N")
    add_option(parser, "--max-new-tokens", "maximum number of new tokens", 64, type=at_least(1), metavar="N")
    add_option(parser, "--top-k", "sample from the K likeliest tokens", 50, type=at_least(1), metavar="K")
    add_option(parser, "--top-p", "sample from the smallest set of likeliest tokens whose probability reaches P",
               0.95, type=number(0, 1), metavar="P")  # fmt: skip
    add_option(parser, "--temperature", "divide the logits by T", 1, type=number(0, MOST), metavar="T")
    add_option(parser, "--seed", "seed, the same for every prompt", 0, type=at_least(0, 2**63 - 1), metavar="N")
    add_stored_dtype(parser, "dtype to run in")
    add_device(parser)
    add_option(parser, "--out", "new or empty directory for samples.json, samples.md and index.html", metavar="DIR")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Show how a model and its pruned versions continue the same prompts."""
    from pyprune.study.destination import require_directory

    if options.out is not None:
        require_directory(options.out)
    from pyprune.study.samples import PROMPTS, SHARES, samples

    device = chosen_device(options)
    quiet_transformers()
    with Bar() as bar:
        written = samples(
            options.model,
            *options.others,
            prompts=options.prompt or PROMPTS,
            draws=options.draws,
            max_new_tokens=options.max_new_tokens,
            top_k=options.top_k,
            top_p=options.top_p,
            temperature=options.temperature,
            seed=options.seed,
            dtype=None if options.dtype is None else torch_dtype(options.dtype),
            device=device,
            progress=bar,
        )
    if options.out is not None:
        written.save(options.out)
    if options.json:
        return print_json(written.to_dict())
    for name, text in written.texts():
        print(f"[{name}] {text}\n")
    print(written.introduction())
    print_table(SHARES, written.shares())
    if options.out is not None:
        print(f"Written: {os.path.join(options.out, 'index.html')}")
