"""`pyprune generate`: continue prompts, with blocks or sublayers skipped."""

from __future__ import annotations

import argparse
import time
from typing import Any

from pyprune.commands.continuations import Continuations, check_options, pruning_of, sampling_of
from pyprune.commands.inputs import chosen_device, loaded
from pyprune.commands.options import (
    MODEL_HELP,
    MOST,
    add_device,
    add_dtype,
    add_json,
    add_skip,
    add_weight_format,
    at_least,
    command,
    number,
)
from pyprune.commands.output import print_json


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "generate",
        "generate text, with blocks or sublayers skipped",
        "Continue prompts with the pyprune engine. Whole blocks, or only their attention or FFN sublayers, can be "
        "skipped at run time: a quick look at what a pruning does, with nothing written. A text ends at the model's "
        "end-of-text token or after --max-new-tokens. A shape: model has no tokenizer: it gets a random prompt and "
        "prints token ids.",
        'pyprune generate smollm2-135m --prompt "The capital of France is" --skip 5,14',
        'pyprune generate smollm2-135m --prompt "Once upon a time" --temperature 0.8 --top-p 0.9 --seed 7 --stream',
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="text to continue; may be repeated, and all run as one batch (required, except for shape: models)",
    )
    parser.add_argument(
        "--max-new-tokens", type=at_least(1), default=64, metavar="N", help="maximum number of new tokens (default: 64)"
    )
    add_skip(parser)
    parser.add_argument(
        "--pruning",
        metavar="FILE",
        help="also skip the blocks and sublayers of a pruning.json, which may not narrow widths (default: none)",
    )
    parser.add_argument(
        "--temperature",
        type=number(0, None),
        default=0.0,
        metavar="T",
        help="divide the logits by T; 0 takes the likeliest token (default: 0)",
    )
    parser.add_argument(
        "--top-k", type=at_least(1), metavar="K", help="sample from the K likeliest tokens (default: all)"
    )
    parser.add_argument(
        "--top-p",
        type=number(0, 1),
        metavar="P",
        help="sample from the smallest set of likeliest tokens whose probability reaches P (default: 1)",
    )
    parser.add_argument(
        "--min-p",
        type=number(0, 1),
        metavar="P",
        help="sample from tokens at least P times as likely as the likeliest (default: all)",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=number(0, MOST),
        default=1.0,
        metavar="R",
        help="above 1, tokens already in the prompt or text become less likely (default: 1)",
    )
    parser.add_argument(
        "--seed", type=at_least(0, 2**63 - 1), metavar="N", help="seed of the sampling (default: a new one each time)"
    )
    parser.add_argument(
        "--stream", action="store_true", help="print one prompt's text while it is generated (default: off)"
    )
    parser.add_argument(
        "--logprobs",
        action="store_true",
        help="with --json: add the model's log-probability of each new token, before penalty and temperature "
        "(default: off)",
    )
    parser.add_argument(
        "--prefill-chunk",
        type=at_least(1),
        default=512,
        metavar="N",
        help="run at most N prompt tokens at once, to limit memory (default: 512)",
    )
    add_weight_format(parser)
    add_dtype(parser, None, "dtype to run in (default: the checkpoint's own)")
    add_device(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Continue prompts, with blocks or sublayers skipped at run time."""
    check_options(options)
    params = sampling_of(options)
    pruning = pruning_of(options)
    decoder = loaded(options.model, options.dtype, chosen_device(options))
    pruning.check(decoder)
    continuations = Continuations(options, decoder, pruning, params)
    name = decoder.name
    del decoder  # weights in another format are the engine's own, and nobody needs the others any more
    if options.stream:
        return continuations.print_as_it_comes()
    before = time.perf_counter()
    sequences = continuations.sequences()
    seconds = time.perf_counter() - before
    if options.json:
        return print_json(
            {
                "model": name,
                **sequences[0],  # the only one, mostly
                "skip": {"blocks": list(pruning.blocks), "mha": list(pruning.mha), "ffn": list(pruning.ffn)},
                "seconds": seconds,
                "tokens_per_s": sum(len(sequence["ids"]) for sequence in sequences) / seconds,
                "sequences": sequences,
            }
        )
    for sequence in sequences:
        shape_ids = sequence["text"] is None
        print(" ".join(map(str, sequence["ids"])) if shape_ids else sequence["prompt"] + sequence["text"])
