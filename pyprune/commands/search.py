"""`pyprune search`: choose units to remove together, with the perplexity after every step."""

from __future__ import annotations

import argparse
from typing import Any

from pyprune.commands.criterion import add_criterion, chosen_criterion
from pyprune.commands.inputs import (
    chosen_device,
    init_distributed,
    journal_beside,
    loaded_any,
    remove_journal,
    require_texts,
    searched,
)
from pyprune.commands.options import (
    MODEL_HELP,
    SCORED_DTYPE,
    SEARCHES,
    add_device,
    add_json,
    add_memory,
    add_resume,
    add_stored_dtype,
    add_stream,
    add_text,
    add_unit,
    command,
)
from pyprune.commands.output import Bar, is_rank_zero, print_json, print_table


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "search",
        "choose blocks or sublayers to remove together",
        "Choose units (blocks or sublayers) to remove together. one-shot scores once, by any criterion, and removes "
        "the lowest. greedy removes one unit, scores the rest again, and repeats (SLEB for blocks, BlockPruner with "
        "--unit mha+ffn). window removes the run of consecutive blocks that costs least, by ppl, angular or "
        "block-influence. The table shows the perplexity after each step; --out saves it.",
        "pyprune search smollm2-135m --depth 8 --method greedy --out greedy.json",
        "pyprune search smollm2-135m --depth 20% --method greedy --unit mha+ffn --protect first=1,last=1",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--depth",
        metavar="N|P%",
        required=True,
        help="remove N units, or the number nearest to P%% of all parameters (required)",
    )
    parser.add_argument(
        "--method",
        choices=SEARCHES,
        default="greedy",
        help="how to choose units (default: greedy)",
    )
    add_unit(parser, "what to remove: whole blocks, attention sublayers, FFN sublayers, or sublayers of both kinds")
    add_criterion(parser)
    add_text(parser)
    add_stored_dtype(parser, SCORED_DTYPE)
    add_device(parser)
    parser.add_argument("--out", metavar="FILE", help="JSON file for the result, replaced if it exists (default: none)")
    parser.add_argument(
        "--pruning-out",
        metavar="FILE",
        help="JSON file for the pruning, as generate --pruning and export read it (default: none)",
    )
    add_memory(parser)
    add_stream(parser)
    add_resume(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Choose units to remove together."""
    from pyprune.pruning import parse_amount
    from pyprune.scoring.searches.search import check_search
    from pyprune.study.destination import require_file

    amount = parse_amount(options.depth)
    for path in (options.out, options.pruning_out):
        if path is not None:
            require_file(path)
    criterion, settings = chosen_criterion(options, options.unit or "block")
    check_search(options.method, criterion.name, options.unit or "block", settings)
    require_texts(options)
    journal_beside(options)
    device = chosen_device(options)
    init_distributed(device)
    decoder = loaded_any(options.model, options.dtype, device, options.stream)
    with Bar() as bar:
        result = searched(options, decoder, options.method, amount, bar)
    if not is_rank_zero():
        return None
    if options.out is not None:
        result.to_json(options.out)
        remove_journal(options)
    if options.pruning_out is not None:
        result.pruning().to_json(options.pruning_out)
    if options.json:
        return print_json(result.to_dict())
    _report(decoder.name, result)
    return None


def _report(name: str, result: Any) -> None:
    rows, gone = [], 0
    for place, step in enumerate(result.steps, start=1):
        gone += step.parameters
        units = ", ".join(f"{kind} {index}" for kind, index in step.removed)
        change, share = f"{step.score / result.baseline:.4g}x", f"{gone / result.parameters:.1%}"
        rows.append([str(place), units, f"{step.score:.6g}", change, share])
    title = f"{name}: {result.method} by {result.criterion}, unpruned model {result.baseline:.6g}"
    print_table(["step", "removed", "ppl", "of the unpruned", "parameters removed"], rows, title)
    cost, naive = result.cost, result.naive
    print(
        f"{cost.blocks:,.0f} block and {cost.heads:,.0f} head passes; a forward pass for each candidate would take"
        f" {naive.blocks:,.0f} and {naive.heads:,.0f}"
    )
