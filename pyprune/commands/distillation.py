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
        "how the student is held to the teacher: forward-kl or reverse-kl between the next-token distributions, or "
        "hidden, the streams behind the blocks that stay",
        shown="forward-kl",
        choices=LOSSES,
    )
    add_option(
        parser,
        "--distill-top-k",
        "compare the teacher's K likeliest tokens, and all others together",
        shown="the whole vocabulary",
        type=at_least(1),
        metavar="K",
    )
    add_option(
        parser,
        "--distill-weight",
        "of the teacher in the loss; the next token has the rest",
        shown="0.5",
        type=number(0, 1),
        metavar="W",
    )
    add_option(
        parser, "--temperature", "of both distributions when they are compared", shown="1", type=number(0, 1e6),
        metavar="T",
    )  # fmt: skip


def add_train_from(parser: argparse._ActionsContainer) -> None:
    """--train-from."""
    add_option(
        parser,
        "--train-from",
        "the first block that trains: its place from 0, or first-cut. Blocks before the first cut are the original's; "
        "left out, they need no gradients, and with a teacher they are run once for both",
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
        raise argparse.ArgumentTypeError(f"{text!r}: a block's place from 0, or {FIRST_CUT}, is expected")
    return int(text)
