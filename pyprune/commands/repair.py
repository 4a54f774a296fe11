"""`pyprune repair`: recover a pruned model's quality without training it as a whole, and save it."""

from __future__ import annotations

import argparse
from typing import Any

from pyprune.commands.inputs import (
    calibration_windows,
    chosen_device,
    init_distributed,
    loaded,
    require_texts,
    take_text,
)
from pyprune.commands.options import (
    MODEL_HELP,
    add_device,
    add_json,
    add_memory,
    add_stream,
    add_text,
    at_least,
    command,
    number,
)
from pyprune.commands.output import Bar, is_rank_zero, print_json, print_table
from pyprune.errors import InputError

METHODS = (
    "auto", "mean-update", "scale", "linear", "linear-cosine", "refit", "refit-all", "refit-all-o", "flap-bias", "stat",
    "blockwise", "tail",
)  # fmt: skip
"""`recovery.methods.METHODS`, which would import torch; a test holds them equal."""
FOLLOWING = ("refit-all", "refit-all-o", "blockwise", "tail")
"""`recovery.methods.FOLLOWING`, likewise."""
STEPS = {"auto", "blockwise", "tail"}
"""The methods that make gradient steps."""
SAMPLES, SAMPLES_OF_STEPS = 256, 1024
"""Windows that a closed form, and what makes gradient steps, is fitted on."""
SAMPLES_HELP = f"{SAMPLES_OF_STEPS}, for closed forms alone {SAMPLES}"
TEXT = "demo:passages"
"""`demonstrations.TRAINING`, likewise."""
METHODS_HELP = (
    "auto (refit-all-o, or another closed form if that does not help on held-out windows, then tail if that "
    "helps); a closed form: mean-update, scale (Prune&Comp), linear or linear-cosine (ReplaceMe), "
    "refit (least squares for the projection before each cut), refit-all (and every later down), refit-all-o (and "
    "every later o), for width flap-bias or stat; gradient steps: blockwise (each block alone) or tail (the last "
    "blocks together); or a chain such as refit-all-o+blockwise+tail"
)


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "repair",
        "repair a pruned model without retraining",
        "Fit the remaining weights of a pruned model to its original on calibration text. Shapes and speed do not "
        "change (mean-update and flap-bias add biases). Every eighth window is held out: it chooses the ridge and the "
        "method, and shows whether the repair harms; a closed form with nothing to choose takes all windows. The text "
        "matters more than the method: take many windows, of several kinds of text.",
        "pyprune repair smollm2-135m smollm2-depth20 --out smollm2-repaired",
        "pyprune repair smollm2-135m smollm2-depth20 --method refit-all-o+blockwise --steps 50 --out smollm2-distilled",
    )
    parser.add_argument("model", metavar="ORIGINAL", help=MODEL_HELP)
    parser.add_argument("pruned", metavar="PRUNED", help="directory that prune wrote, or a pruning's .json file")
    parser.add_argument(
        "--method", type=repair_method, default="auto", metavar="METHOD", help=f"{METHODS_HELP} (default: auto)"
    )
    parser.add_argument(
        "--ridge",
        type=ridge,
        default="auto",
        metavar="auto|X",
        help="how strongly a fit is pulled towards the old weights, in units of the inputs' mean square; auto chooses "
        "on the held-out windows (default: auto)",
    )
    parser.add_argument(
        "--steps",
        type=at_least(1),
        metavar="N",
        help="gradient steps of auto, blockwise (for each block) and tail (default: blockwise 100, tail 400)",
    )
    parser.add_argument(
        "--minutes",
        type=number(0, 1e6),
        metavar="X",
        help="time limit of --method auto, which skips what would exceed it and makes fewer steps (default: none)",
    )
    parser.add_argument(
        "--tail-blocks",
        type=at_least(1),
        metavar="N",
        help="blocks that tail fits (default: 16, or as many as a third of the free memory holds meanwhile)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        help="matrix products of the gradient steps; weights stay in float32 meanwhile (default: bf16 on a processor "
        "that multiplies bfloat16, else fp32)",
    )
    add_text(parser, TEXT, samples=None, shown=SAMPLES_HELP)
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="new or empty directory for the checkpoint (required)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep finished work in a folder beside --out, and continue an interrupted run from there (default: off)",
    )
    add_device(parser)
    add_memory(parser)
    add_stream(parser)
    add_json(parser)


def default_samples(method: str) -> int:
    """How many windows are drawn for a method unless --samples says otherwise."""
    return SAMPLES_OF_STEPS if STEPS & set(method.split("+")) else SAMPLES


def run(options: argparse.Namespace) -> None:
    """Repair a pruned model and save it."""
    from functools import partial
    from pathlib import Path

    from pyprune.files import require_free_directory
    from pyprune.pruning import Pruning
    from pyprune.recovery import repair_with_report
    from pyprune.recovery.methods import chain_of, check_options, require_samples
    from pyprune.study.destination import require_directory

    require_directory(options.out)
    makes_steps = STEPS & set(options.method.split("+"))
    if options.steps is not None and not makes_steps:
        raise InputError(f"--steps {options.steps}: belongs to --method auto, blockwise and tail")
    if options.minutes is not None and options.method != "auto":
        raise InputError(f"--minutes {options.minutes:g}: belongs to --method auto")
    if options.tail_blocks is not None and not {"auto", "tail"} & makes_steps:
        raise InputError(f"--tail-blocks {options.tail_blocks}: belongs to --method auto and tail")
    if options.precision is not None and not makes_steps:
        raise InputError(f"--precision {options.precision}: belongs to --method auto, blockwise and tail")
    check_options(options.method, options.ridge)
    options.samples = options.samples or default_samples(options.method)
    require_samples(options.samples, chain_of(options.method), options.ridge)
    take_text(options, TEXT)
    require_texts(options)
    is_pruning = options.pruned.endswith(".json")
    if options.stream and is_pruning:
        raise InputError(f"--stream: reads ORIGINAL as it runs; PRUNED {options.pruned}: a directory is expected then")
    device = chosen_device(options)
    init_distributed(device)
    pruned = Pruning.from_json(options.pruned) if is_pruning else loaded(options.pruned, device=device)
    original = loaded(options.model, device=device, stream=options.stream)
    settings: dict[str, Any] = {} if options.steps is None else {"steps": options.steps}
    if options.resume:
        out = require_free_directory(options.out)
        settings["resume"] = Path(out).with_name(f"{out.name}.journal")
    with Bar() as bar:
        repaired = repair_with_report(
            original,
            pruned,
            calibration_windows(options, original).input_ids,
            options.method,
            ridge=options.ridge,
            seed=options.seed,
            memory=options.memory,
            minutes=options.minutes,
            precision=options.precision,
            tail_blocks=options.tail_blocks,
            progress=partial(bar, f"repairing, {options.method}"),
            **settings,
        )
    if not is_rank_zero():
        return
    repaired.decoder.save(options.out)
    if options.resume:
        from shutil import rmtree

        rmtree(settings["resume"], ignore_errors=True)
    report(options, original.name, repaired)


def report(options: argparse.Namespace, model: str, repaired: Any) -> None:
    """Print the perplexities on the held-out windows."""
    if options.json:
        return print_json({"model": model, "out": options.out, **repaired.to_dict()})
    print_repair(repaired, f"{model}, repaired by {repaired.method}, written to {options.out}")


def print_repair(repaired: Any, title: str) -> None:
    """A table of the perplexities on every eighth window, and a line where the repair harms."""
    rows = []
    windows = "held-out" if repaired.holds_out else "calibration"
    if repaired.perplexities is not None:
        names = ("original", "pruned", "repaired")
        rows += [
            [f"{windows} perplexity, {name}", f"{value:.2f}"]
            for name, value in zip(names, repaired.perplexities, strict=True)
        ]
    rows += [[f"tried {name}", f"{value:.2f}"] for name, value in repaired.tried.items()]
    print_table(["", ""], rows, title)
    if repaired.harms:
        print(f"This repair harms: on the {windows} windows the pruned model is better without it.")


def repair_method(text: str) -> str:
    """A method, or several with + between them."""
    first, *behind = text.split("+")
    if first not in METHODS or (behind and first == "auto") or not set(behind) <= set(FOLLOWING):
        raise argparse.ArgumentTypeError(
            f"{text!r}: one of {', '.join(METHODS)} is expected; after a + only {', '.join(FOLLOWING)}, and nothing"
            " after auto"
        )
    return text


def ridge(text: str) -> float | str:
    try:
        return "auto" if text == "auto" else number(0, None)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(str(error).replace("is expected", "or auto is expected")) from None
