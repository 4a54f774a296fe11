"""The options of distillation and of which blocks train, for the commands that retrain."""

from __future__ import annotations

import argparse
from typing import Any

from pyprune.commands.options import add_option, at_least, number
from pyprune.errors import InputError

LOSSES = ("forward-kl", "reverse-kl", "hidden")
"""`retraining.objectives.distillation.KINDS`, which would import torch; a test holds them equal."""
FIRST_CUT = "first-cut"


def add_distillation(parser: argparse._ActionsContainer) -> None:
    """--distill-loss, --distill-top-k, --distill-weight, --temperature; --distill is the command's own."""
    add_option(
        parser,
        "--distill-loss",
        "distillation loss: forward-kl or reverse-kl between next-token distributions, or hidden, the distance of "
        "hidden states after the blocks that remain",
        shown="forward-kl",
        choices=LOSSES,
    )
    add_option(
        parser,
        "--distill-top-k",
        "compare the teacher's K most likely tokens, and the others lumped together",
        shown="the whole vocabulary",
        type=at_least(1),
        metavar="K",
    )
    add_option(
        parser,
        "--distill-weight",
        "share of the distillation loss, above 0 to 1; the next-token loss has the rest",
        shown="0.5",
        type=number(0, 1),
        metavar="W",
    )
    add_option(
        parser, "--temperature", "softens both distributions before they are compared", shown="1", type=number(0, 1e6),
        metavar="T",
    )  # fmt: skip


def add_train_from(parser: argparse._ActionsContainer) -> None:
    """--train-from."""
    add_option(
        parser,
        "--train-from",
        "first block that trains: its position from 0, or first-cut; earlier blocks are frozen and need no gradients, "
        "and a teacher shares them up to the first cut",
        0,
        type=place,
        metavar="WHICH",
    )


def chosen_distillation(options: argparse.Namespace) -> dict[str, Any]:
    """What of those options was given, as `retrain` takes it. InputError for one without --distill."""
    values = {
        name: getattr(options, name)
        for name in ("distill_loss", "distill_top_k", "distill_weight", "temperature")
        if getattr(options, name) is not None
    }
    if values and not options.distill:
        raise InputError(f"--{next(iter(values)).replace('_', '-')}: belongs to --distill")
    return values


def place(text: str) -> int | str:
    if text == FIRST_CUT:
        return text
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: a block's position from 0, or {FIRST_CUT}, is expected")
    return int(text)
