"""`pyprune iterate`: remove one unit, retrain, score again."""

from __future__ import annotations

import argparse
import os
from typing import Any

from pyprune.commands.distillation import add_distillation, add_train_from, chosen_distillation
from pyprune.commands.inputs import (
    calibration_windows,
    chosen_device,
    journal_beside,
    loaded,
    quiet_transformers,
    remove_journal,
    require_texts,
)
from pyprune.commands.options import (
    MODEL_HELP,
    add_device,
    add_json,
    add_memory,
    add_option,
    add_stored_dtype,
    add_text,
    add_unit,
    at_least,
    command,
    share,
)
from pyprune.commands.output import Bar, console, print_json, print_table
from pyprune.commands.retrain import NUMBERS, print_dropped
from pyprune.errors import InputError


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "iterate",
        "prune one block or sublayer at a time and retrain after each",
        "Remove the block whose removal costs least, retrain the model, rank the rest again, and so on. The table and "
        "the figure show the perplexity on held-out text for every number of blocks removed, before and after "
        "retraining, beside one-shot and greedy pruning without retraining. Three texts are needed: --text to rank "
        "blocks, --train-text or --instructions to train, --eval-text to measure.",
        "pyprune iterate smollm2-135m --count 3 --train-text demo:sms --retrain-steps 20 --out iterated",
        "pyprune iterate smollm2-135m --ratio 20% --instructions alpaca.jsonl --retrain-steps 200 --resume --out i20",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument(
        "--count", type=at_least(1), metavar="N", help="rounds; each removes one unit (this or --ratio is required)"
    )
    amount.add_argument(
        "--ratio",
        type=share,
        metavar="P%",
        help="as many rounds as come nearest to P%% of all parameters (this or --count is required)",
    )
    add_unit(parser, "what is removed: a block, or only its attention or FFN sublayer")
    parser.add_argument(
        "--protect", metavar="WHICH", help="blocks that stay: first=N, last=N and indices, with commas (default: none)"
    )
    add_text(parser)
    add_option(
        parser,
        "--eval-text",
        "held-out text for the perplexities: another source, as for --text",
        shown="demo:boolq; for shape: models random ids",
        metavar="FILE",
    )
    add_option(parser, "--eval-tokens", "use the first N tokens of --eval-text", 4096, type=at_least(2), metavar="N")
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument(
        "--train-text",
        metavar="FILE",
        help="text to retrain on: a source as for --text (this or --instructions is required)",
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
        help="also remove all units at once by the first ranking, and retrain that model once with the steps of all "
        "rounds (default: off)",
    )
    add_stored_dtype(parser, "dtype of the weights")
    add_device(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        required=True,
        help="new or empty directory for the checkpoint, JSON, CSV and figure (required)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep finished work in a folder beside --out, and continue from the folder of an interrupted run; it is "
        "removed when --out is written (default: off)",
    )
    add_memory(parser)
    add_json(parser)


SETTINGS = (
    "cutoff", "batch", "micro_batch", "learning_rate", "warmup_steps", "lora_rank", "lora_alpha", "lora_dropout",
)  # fmt: skip
"""Of the numbers that retrain takes."""


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("each retraining", "as in pyprune retrain")
    for name, kind, metavar, about in NUMBERS:
        if name in SETTINGS:
            group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=about)
    add_option(group, "--precision", "precision of the training", shown="the model's", choices=("fp32", "bf16"))
    for name, about in (
        ("full", "train all parameters, not LoRA"),
        ("gradient-checkpointing", "recompute blocks in the backward pass, to save memory"),
        ("distill", "distill from the unpruned model on the same tokens"),
    ):
        group.add_argument(f"--{name}", action="store_true", help=f"{about} (default: off)")
    add_distillation(group)
    add_train_from(group)


def _chosen_training(options: argparse.Namespace) -> dict[str, Any]:
    names = (*SETTINGS, "precision", "full", "gradient_checkpointing", "train_from")
    values = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return {**values, **chosen_distillation(options)}


def run(options: argparse.Namespace) -> None:
    """Remove one unit, retrain, score again."""
    from pyprune.files import remove_parts
    from pyprune.retraining.adapters import require_extra
    from pyprune.retraining.iterate import DISTILLATION, iterate, require_rounds
    from pyprune.retraining.train import checked_settings
    from pyprune.scoring.calibration import evaluation
    from pyprune.study.destination import require_directory
    from pyprune.study.iterate_report import cells, figure

    require_directory(options.out)
    require_extra()
    device = chosen_device(options)
    training = _chosen_training(options)
    checked_settings({name: value for name, value in training.items() if name not in DISTILLATION})
    quiet_transformers()
    require_rounds(
        options.model, options.count, options.ratio, options.unit or "block", options.protect,
        training.get("train_from", 0), training.get("distill_top_k"),
    )  # fmt: skip
    require_texts(options)
    eval_text, train_text = _other_texts(options)
    if options.resume:
        remove_parts(options.out)
    decoder = loaded(options.model, options.dtype, device)
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
            eval_text=eval_text,
            instructions=options.instructions,
            distill=options.distill,
            seed=options.seed,
            calibration=windows.fingerprint,
            memory=options.memory,
            resume=journal_beside(options) or False,
            progress=bar,
            **_calibrated(options),
            **training,
        )
    result.save(options.out, {"iterate.png": figure(result)})
    remove_journal(options)
    if options.json:
        return print_json({**result.to_dict(), "out": options.out})
    print_table(*cells(result), f"{result.model}: perplexity on held-out text, {result.steps} steps a round")
    if result.one_shot_retrained is not None:
        steps = result.steps * len(result.rounds)
        print(f"One-shot, then {steps} steps at once: {result.one_shot_retrained:.4g}")
    print_dropped(result.settings)
    console().print(f"Written: {os.path.join(options.out, 'iterate.png')}", markup=False, highlight=False)
    return None


def _other_texts(options: argparse.Namespace) -> tuple[Any, Any]:
    """The held-out text and the one to train on, read now where that takes reading; InputError for ones that are
    missing, and where two of the texts are the same: but `demo:lambada` may be calibrated and trained on, since what
    is drawn from it is not trained on."""
    from pyprune.retraining.clean_texts import require_clean
    from pyprune.retraining.instructions import require_instructions
    from pyprune.scoring.calibration import CALIBRATION, EVALUATION, require_text, same_text

    is_random = options.model.startswith("shape:")
    held_out = options.eval_text or (None if is_random else EVALUATION)
    used = {"--train-text": options.train_text, "--text": options.text or (None if is_random else CALIBRATION)}
    for name, text in used.items():
        if text is not None and held_out is not None and same_text(text, held_out):
            raise InputError(f"{name} {text}: is also the held-out text; another --eval-text is expected")
    calibrated = used["--text"]
    if calibrated not in (None, CALIBRATION) and options.train_text and same_text(options.train_text, calibrated):
        raise InputError(f"--train-text {options.train_text}: is also the calibration text; another text is expected")
    if options.instructions is not None:
        require_instructions(options.instructions)
    require_clean(options.train_text)
    texts = ((held_out, "--eval-text"), (options.train_text, "--train-text"))
    read = [None if text is None else require_text(text, option) or text for text, option in texts]
    return read[0], read[1]


def _calibrated(options: argparse.Namespace) -> dict[str, Any]:
    """The draws whose rows of the demonstration text are not trained on: the usual ones, and the one made here."""
    from pyprune.retraining.clean_texts import DRAWN, Drawn
    from pyprune.scoring.calibration import CALIBRATION

    if options.text not in (None, CALIBRATION):
        return {}
    draw = Drawn(options.samples, options.seq_len, options.seed, options.packing, options.bos)
    return {"calibrated": (*DRAWN, draw)}
