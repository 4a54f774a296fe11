"""`pyprune retrain`: gradient steps through a pruned model, LoRA's or all parameters', and save it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pyprune.commands.distillation import add_distillation, add_train_from, chosen_distillation
from pyprune.commands.inputs import chosen_device, journal_beside, loaded, loaded_any, remove_journal
from pyprune.commands.options import (
    MODEL_HELP,
    add_device,
    add_json,
    add_option,
    add_resume,
    add_stored_dtype,
    at_least,
    command,
    number,
)
from pyprune.commands.output import Bar, print_json, print_table
from pyprune.errors import InputError

NUMBERS = (
    ("steps", at_least(1), "N", "optimizer steps (default: those of --epochs)"),
    ("epochs", number(0, 1e6), "X", "passes over the text (default: 2)"),
    ("cutoff", at_least(2), "T", "tokens per sample (default: 256)"),
    ("batch", at_least(1), "B", "samples per optimizer step (default: 64)"),
    ("micro_batch", at_least(1), "M", "samples per forward pass; --batch is a multiple (default: 4)"),
    ("learning_rate", number(0, 1e3), "X", "AdamW's peak rate, after warm-up; then linear to zero (default: 0.0001)"),
    ("warmup_steps", at_least(0), "N", "warm-up steps, at most a tenth of all (default: 100)"),
    ("lora_rank", at_least(1), "R", "rank of the LoRA adapters on every projection (default: 8)"),
    ("lora_alpha", number(0, 1e6), "X", "LoRA's alpha: adapters are scaled by alpha / rank (default: 16)"),
    ("lora_dropout", number(0, None), "P", "dropout on the adapters' input, from 0 to below 1 (default: 0.05)"),
    ("held_out", at_least(0), "N", "samples to evaluate on (default: 64 of --eval-text, else a twentieth, at most 64)"),
    ("eval_steps", at_least(1), "N", "steps between evaluations (default: a twentieth of all)"),
    ("seed", at_least(0), "N", "seed of sample order, adapters and dropout (default: 0)"),
)  # fmt: skip
"""Fields of `retraining.Settings`, which would import torch; a test holds their defaults equal."""


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "retrain",
        "retrain a pruned model, with LoRA or all parameters",
        "Train a pruned model on plain text, or on the replies of instructions and conversations, and save it with "
        "LoRA merged and its pruning record. --distill adds the unpruned model as a teacher. The defaults are the "
        "paper's. Needs `pip install pyprune[retrain]`.",
        "pyprune retrain smollm2-depth20 --text demo:passages --steps 20 --batch 8 --out smollm2-retrained",
        "pyprune retrain smollm2-depth20 --instructions alpaca.jsonl --resume --out smollm2-alpaca",
    )
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL_HELP}; usually what prune or repair wrote")
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument(
        "--text",
        metavar="FILE",
        help="plain text, as for score: a file, JSON lines, hf:NAME, demo:passages or demo:lambada (without documents "
        "of calibration or held-out text), demo:sms, or token ids; cut into windows of --cutoff tokens (this or "
        "--instructions is required)",
    )
    texts.add_argument(
        "--instructions",
        metavar="FILE",
        help="JSON lines with instruction, input and output (Alpaca's format), or with messages (the model's chat "
        "template); only replies count in the loss (this or --text is required)",
    )
    add_option(parser, "--field", "the field of JSON lines or of a dataset that holds the text", None, "text",
               metavar="NAME")  # fmt: skip
    add_option(
        parser,
        "--eval-text",
        "held-out text to evaluate on during training, named like --text",
        shown="demo:boolq for demo: texts, else samples kept out of training",
        metavar="FILE",
    )
    add_option(
        parser,
        "--calibrated",
        "calibration draws from demo:lambada, as SAMPLESxTOKENS or SAMPLESxTOKENS@SEED; their documents are not "
        "trained on",
        shown="10x128,128x128,256x128",
        metavar="SxT,...",
    )
    for name, kind, metavar, about in NUMBERS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=about)
    parser.add_argument("--full", action="store_true", help="train all parameters, not LoRA (default: off)")
    add_option(
        parser,
        "--precision",
        "bf16: frozen weights and matrix products in bfloat16, trained parameters in float32; fp32: all in float32",
        shown="fp32 for a float32 model, else bf16",
        choices=("fp32", "bf16"),
    )
    parser.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="recompute blocks in the backward pass, for less memory (default: off)",
    )
    parser.add_argument(
        "--distill", metavar="MODEL", help="the unpruned model, as a teacher on the same tokens (default: none)"
    )
    add_distillation(parser)
    add_train_from(parser)
    add_stored_dtype(parser, "dtype of the model, also when saved")
    add_device(parser)
    parser.add_argument("--out", metavar="DIR", required=True, help="new or empty directory for the model (required)")
    parser.add_argument(
        "--adapters",
        metavar="DIR",
        help="new or empty directory for the LoRA adapters alone, in PEFT's format (default: none)",
    )
    add_resume(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Retrain a model and save it."""
    from functools import partial

    from pyprune.retraining import retrain_with_report
    from pyprune.retraining.adapters import require_extra
    from pyprune.retraining.train import checked_settings, require_outputs
    from pyprune.study.training_plot import training_curve

    settings = chosen_settings(options)
    checked = checked_settings(settings)
    distillation = chosen_distillation(options)
    require_extra()
    require_outputs(options.out, options.adapters, checked, journal_beside(options))
    texts = read_texts(options)
    device = chosen_device(options)
    decoder = loaded_any(options.model, options.dtype, device)
    teacher = None if options.distill is None else loaded(options.distill, device=device)
    with Bar() as bar:
        result = retrain_with_report(
            decoder,
            **texts,
            **settings,
            **distillation,
            distill_from=teacher,
            adapters=options.adapters,
            resume=journal_beside(options) or False,
            progress=partial(_show, bar),
        )
    result.save(options.out, {"curve.png": training_curve(result.curve, f"Retraining of {decoder.name}")})
    remove_journal(options)
    report(options, decoder.name, result)


def chosen_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Settings` that were given."""
    names = [name for name, *_ in NUMBERS] + ["precision", "full", "gradient_checkpointing", "train_from"]
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def read_texts(options: argparse.Namespace) -> dict[str, Any]:
    """The texts as `retrain` takes them. InputError now for what cannot be had, before anything is loaded."""
    from pyprune.retraining.clean_texts import DRAWN, Drawn, require_clean
    from pyprune.retraining.instructions import require_instructions
    from pyprune.scoring.calibration import CALIBRATION, require_text, same_text
    from pyprune.scoring.calibration.demonstrations import TRAINING

    if options.calibrated is not None and options.text not in (CALIBRATION, TRAINING):
        raise InputError(f"--calibrated {options.calibrated}: belongs to --text {CALIBRATION} or {TRAINING}")
    drawn = DRAWN if options.calibrated is None else tuple(map(Drawn.parse, options.calibrated.split(",")))
    held_out = options.eval_text
    if held_out is not None:
        require_text(held_out, "--eval-text")
    if options.instructions is not None:
        if options.field is not None:
            raise InputError(f"--field {options.field}: belongs to --text")
        require_instructions(options.instructions)
        return {"instructions": options.instructions, "eval_text": held_out, "calibrated": drawn}
    require_clean(options.text)
    require_text(options.text, field=options.field)
    if held_out is not None and same_text(options.text, held_out):
        raise InputError(f"--eval-text {held_out}: is also the training text; another text is expected")
    return {"text": options.text, "field": options.field, "eval_text": held_out, "calibrated": drawn}


def report(options: argparse.Namespace, model: str, result: Any) -> None:
    """Print steps, speed and losses."""
    summary = {"model": model, "out": options.out, **result.to_dict()}
    if options.json:
        return print_json(summary)
    rows = [
        ["steps", str(summary["trained_steps"])],
        ["tokens", f"{summary['trained_tokens']:,}"],
        ["tokens/s", f"{summary['trained_tokens'] / max(summary['seconds'], 1e-9):,.0f}"],
        ["loss of the last step", f"{summary['loss']:.3f}"],
    ]
    for when, loss in (summary["held_out_loss"] or {}).items():
        rows.append([f"held-out loss {when}", f"{loss:.3f}"])
    print_table(["", ""], rows, f"{model}, retrained, written to {options.out}")
    print_dropped(summary)
    print(f"Loss curve: {Path(options.out) / 'curve.csv'} and curve.png")


def print_dropped(record: dict[str, Any]) -> None:
    """Print how many samples of the instructions were not trained on, if any."""
    dropped = record.get("dropped_samples", 0)
    if dropped:
        print(f"Dropped: {dropped:,} of {record['samples'] + dropped:,} samples, with no reply within --cutoff")


def _show(bar: Bar, done: int, total: int, loss: float) -> None:
    bar("retraining", done, total, "" if loss != loss else f"loss {loss:.3f}")
