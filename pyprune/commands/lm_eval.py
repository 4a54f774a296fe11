"""`pyprune lm-eval`: lm-eval's own command line, with our model in it."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from pyprune.commands.options import command
from pyprune.errors import InputError

SKIP = re.compile(r"(^|,)skip=(\d+(?:,\d+)+)")


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "lm-eval",
        "run lm-eval on pyprune's models",
        "Run the command line of EleutherAI's lm-eval with the model `pyprune` registered in it. That model's "
        "--model_args are pretrained=MODEL (whatever pyprune loads, such as a pruned directory), skip=10,11 (blocks to "
        "skip), dtype, device, tokenizer, add_bos_token, prefix_token_id, max_length and tokens=N (tokens read at "
        "once). `pyprune lm-eval run --help` shows lm-eval's own options.",
        "pyprune lm-eval run --model pyprune --model_args pretrained=smollm2-135m,skip=10,11 --tasks piqa --limit 100",
        "pyprune lm-eval ls tasks",
    )
    parser.add_argument("arguments", nargs="*", metavar="ARGS", help="lm-eval's arguments (default: this help)")
    _take_all(parser)


def _take_all(parser: argparse.ArgumentParser) -> None:
    """Let the command's parser take whatever follows as it stands, options too."""

    def parse(arguments: Sequence[str], namespace: argparse.Namespace | None = None) -> Any:
        rest = [argument for argument in arguments if argument != "--debug"]  # `main` has seen it
        if not rest or rest in (["-h"], ["--help"]):
            parser.print_help()
            parser.exit()
        return argparse.Namespace(arguments=rest), []

    parser.parse_known_args = parse  # type: ignore[method-assign,assignment]


def run(options: argparse.Namespace) -> None:
    """Hand the arguments to lm-eval, with our model registered."""
    importlib.import_module("pyprune.lm_eval")
    from lm_eval.__main__ import cli_evaluate

    # lm-eval wants brackets around a list: without them the next argument begins at a comma.
    sys.argv = ["lm-eval", *(SKIP.sub(r"\1skip=[\2]", argument) for argument in options.arguments)]
    try:
        cli_evaluate()
    except ValueError as error:
        if str(error).startswith("Tasks not found"):
            raise InputError(f"lm-eval: {error}; pyprune lm-eval ls tasks lists them") from None
        raise
