"""`pyprune iterate`: remove one unit, retrain, score again."""

from __future__ import annotations

import argparse
import math
import os
from typing import Any

from pyprune.commands.distillation import add_distillation, add_train_from, chosen_distillation
from pyprune.commands.inputs import calibration_windows, loaded, require_texts
from pyprune.commands.options import (
    MODEL_HELP,
    add_json,
    add_memory,
    add_option,
    add_stored_dtype,
    add_text,
    add_unit,
    at_least,
    command,
    number,
    share,
)
from pyprune.commands.output import Bar, console, print_json, print_table
from pyprune.errors import InputError


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "iterate",
        "remove one unit, retrain, score again (the paper's Figure 5)",
        "Remove the block whose removal costs least, retrain the model, rank what is left again, and so on. The table "
        "and the figure show the perplexity on held-out text after every removal, before and after its retraining, "
        "beside one-shot and greedy pruning without any. Three texts are needed: one to rank by, one to train on, one "
        "to judge by.",
        "pyprune iterate smollm2-135m --count 3 --train-text demo:sms --retrain-steps 20 --out iterated",
        "pyprune iterate smollm2-135m --ratio 20% --instructions alpaca.jsonl --retrain-steps 200 --resume --out i20",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument(
        "--count", type=at_least(1), metavar="N", help="units to remove, one a round (this or --ratio is required)"
    )
    amount.add_argument(
        "--ratio",
        type=share,
        metavar="P%",
        help="rounds until the units gone come nearest to P%% of all parameters (this or --count is required)",
    )
    add_unit(parser, "what is removed: a block, or only its attention or FFN sublayer")
    parser.add_argument(
        "--protect", metavar="WHICH", help="blocks that stay: first=N, last=N and indices, with commas (default: none)"
    )
    add_text(parser)
    add_option(
        parser,
        "--eval-text",
        "held-out text for the perplexities, named like --text but another one",
        shown="demo:boolq; for shape: models random ids",
        metavar="FILE",
    )
    add_option(parser, "--eval-tokens", "tokens of it, from its beginning", 4096, type=at_least(2), metavar="N")
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument(
        "--train-text",
        metavar="FILE",
        help="text to retrain on, named like --text (this or --instructions is required)",
    )
    texts.add_argument(
        "--instructions",
        metavar="FILE",
        help="instructions to retrain on, as retrain takes them (this or --train-text is required)",
    )
    add_option(parser, "--retrain-steps", "optimizer steps after each removal", 100, type=at_least(1), metavar="N")
    _add_training(parser)
    parser.add_argument(
        "--one-shot-retrained",
        action="store_true",
        help="also remove the front of the first ranking at once, and retrain that once with the steps of all rounds "
        "(default: off)",
    )
    add_stored_dtype(parser, "dtype of the weights")
    parser.add_argument(
        "--out",
        metavar="DIR",
        required=True,
        help="new or empty directory for the checkpoint, JSON, CSV and figure (required)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep what is finished in a folder beside --out, and go on from one that an interrupted run left there; "
        "it is removed when --out is written (default: off)",
    )
    add_memory(parser)
    add_json(parser)


def _add_training(parser: argparse.ArgumentParser) -> None:
    """What differs from the settings of retrain, whose defaults stand where nothing is given."""
    group = parser.add_argument_group("each retraining", "as in pyprune retrain, with its defaults")
    for option, kind, metavar, about in (
        ("--batch", at_least(1), "N", "samples of a step"),
        ("--micro-batch", at_least(1), "N", "samples that go through the model together"),
        ("--cutoff", at_least(2), "T", "tokens of a sample"),
        ("--lora-rank", at_least(1), "R", "rank of the adapters"),
        ("--learning-rate", number(0, 1e6), "X", "the highest learning rate"),
    ):
        add_option(group, option, about, shown="that of retrain", type=kind, metavar=metavar)
    add_option(group, "--precision", "fp32 or bf16", shown="the model's", choices=("fp32", "bf16"))
    group.add_argument("--full", action="store_true", help="train all parameters, not LoRA (default: off)")
    add_train_from(group)
    group.add_argument(
        "--distill", action="store_true", help="the unpruned model teaches each retraining (default: off)"
    )
    add_distillation(group)


def _chosen_training(options: argparse.Namespace) -> dict[str, Any]:
    names = ("batch", "micro_batch", "cutoff", "lora_rank", "learning_rate", "precision", "full", "train_from")
    values = {name: getattr(options, name) for name in names if getattr(options, name)}
    if "batch" in values and "micro_batch" not in values:
        values["micro_batch"] = math.gcd(values["batch"], 4)
    return {**values, **chosen_distillation(options)}


def run(options: argparse.Namespace) -> None:
    """Remove one unit, retrain, score again."""
    from pyprune.files import write_bytes
    from pyprune.retraining.iterate import iterate
    from pyprune.scoring.calibration import evaluation
    from pyprune.study.destination import require_directory
    from pyprune.study.iterate_report import cells, figure

    require_directory(options.out)
    training = _chosen_training(options)
    require_texts(options)
    eval_text, train_text = _other_texts(options)
    decoder = loaded(options.model, options.dtype)
    windows = calibration_windows(options, decoder)
    held_out = evaluation(decoder, eval_text, options.eval_tokens, options.seq_len, options.seed)
    with Bar() as bar:
        result = iterate(
            decoder,
            windows.input_ids,
            held_out=held_out.input_ids,
            count=options.count,
            ratio=options.ratio,
            unit=options.unit or "block",
            protect=options.protect,
            steps=options.retrain_steps,
            one_shot_retrained=options.one_shot_retrained,
            text=train_text,
            instructions=options.instructions,
            distill=options.distill,
            seed=options.seed,
            calibration=windows.fingerprint,
            memory=options.memory,
            out=options.out,
            resume=options.resume,
            progress=bar,
            **training,
        )
    write_bytes(os.path.join(options.out, "iterate.png"), figure(result))
    if options.json:
        return print_json({**result.to_dict(), "out": options.out})
    print_table(*cells(result), f"{result.model}: perplexity on held-out text, {result.steps} steps a round")
    if result.one_shot_retrained is not None:
        steps = result.steps * len(result.rounds)
        print(f"One-shot, then {steps} steps at once: {result.one_shot_retrained:.4g}")
    console().print(f"Written: {os.path.join(options.out, 'iterate.png')}", markup=False, highlight=False)
    return None


def _other_texts(options: argparse.Namespace) -> tuple[Any, Any]:
    """The held-out text and the one to train on, read now where that takes reading; InputError for ones that are
    missing, and where the held-out text is one of the others."""
    from pyprune.scoring.calibration import CALIBRATION, EVALUATION, require_text, same_text

    is_random = options.model.startswith("shape:")
    held_out = options.eval_text or (None if is_random else EVALUATION)
    used = {"--train-text": options.train_text, "--text": options.text or (None if is_random else CALIBRATION)}
    for name, text in used.items():
        if text is not None and held_out is not None and same_text(text, held_out):
            raise InputError(f"{name} {text}: is the held-out text too; another --eval-text is expected")
    texts = [
        (held_out, "--eval-text"),
        (options.train_text, "--train-text"),
    ]
    read = [None if text is None else require_text(text, option) or text for text, option in texts]
    return read[0], read[1]
