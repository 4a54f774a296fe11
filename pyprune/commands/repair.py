"""`pyprune repair`: give a pruned model back what forward passes can, and save it."""

from __future__ import annotations

import argparse
from typing import Any

from pyprune.commands.inputs import calibration_windows, init_distributed, loaded, require_texts
from pyprune.commands.options import MODEL_HELP, add_json, add_memory, add_text, at_least, command, number
from pyprune.commands.output import Bar, is_rank_zero, print_json, print_table
from pyprune.errors import InputError

METHODS = (
    "auto", "mean-update", "scale", "linear", "linear-cosine", "refit", "refit-all", "refit-all-o", "flap-bias", "stat",
    "blockwise",
)  # fmt: skip
"""`recovery.repair.METHODS`, which would import torch; a test holds them equal."""
METHODS_HELP = (
    "auto (the best of several on held-out windows), mean-update, scale (Prune&Comp), linear and linear-cosine "
    "(ReplaceMe), refit (the projection before each cut), refit-all (every later down), refit-all-o (every later o and "
    "down), flap-bias and stat (width), or blockwise (a few hundred local gradient steps a block)"
)


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "repair",
        "fold what was removed into the weights that stay, without training",
        "Take a pruned model and its original over calibration text, and fit what stays to what went. The result is a "
        "checkpoint of the same shapes (mean-update and flap-bias add biases). Every eighth window is held out: it "
        "chooses the ridge and the method, and shows whether the repair harms. Text of the kind that the model is for "
        "matters more than the method; take several hundred windows.",
        "pyprune repair smollm2-135m smollm2-depth20 --text demo:boolq --samples 256 --out smollm2-repaired",
        "pyprune repair smollm2-135m smollm2-depth20 --method blockwise --steps 200 --out smollm2-distilled",
    )
    parser.add_argument("model", metavar="ORIGINAL", help=MODEL_HELP)
    parser.add_argument("pruned", metavar="PRUNED", help="directory that prune --out wrote, or a pruning's .json file")
    parser.add_argument("--method", choices=METHODS, default="auto", help=f"{METHODS_HELP} (default: auto)")
    parser.add_argument(
        "--ridge",
        type=ridge,
        default="auto",
        metavar="auto|X",
        help="how much a fit holds on to the old weights, in units of the inputs' mean square; auto chooses on the "
        "held-out windows (default: auto)",
    )
    parser.add_argument(
        "--steps", type=at_least(1), metavar="N", help="gradient steps a block, of --method blockwise (default: 200)"
    )
    add_text(parser)
    parser.set_defaults(samples=128)
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="new or empty directory for the checkpoint (required)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="of --method blockwise: keep finished blocks in a folder beside --out, and go on from one that an "
        "interrupted run left there (default: off)",
    )
    add_memory(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Repair a pruned model and save it."""
    from functools import partial
    from pathlib import Path

    from pyprune.files import require_free_directory
    from pyprune.pruning import Pruning
    from pyprune.recovery import repair_with_report
    from pyprune.study.destination import require_directory

    require_directory(options.out)
    for name in ("steps", "resume"):
        if getattr(options, name) and options.method != "blockwise":
            raise InputError(f"--{name}: belongs to --method blockwise")
    require_texts(options)
    init_distributed()
    pruned = Pruning.from_json(options.pruned) if options.pruned.endswith(".json") else loaded(options.pruned)
    original = loaded(options.model)
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
    """Print what the held-out windows say."""
    if options.json:
        return print_json({"model": model, "out": options.out, **repaired.to_dict()})
    print_repair(repaired, f"{model}, repaired by {repaired.method}, written to {options.out}")


def print_repair(repaired: Any, title: str) -> None:
    """A table of what the held-out windows say, and a line where the repair harms."""
    rows = []
    if repaired.perplexities is not None:
        names = ("original", "pruned", "repaired")
        rows += [
            [f"held-out perplexity, {name}", f"{value:.2f}"]
            for name, value in zip(names, repaired.perplexities, strict=True)
        ]
    rows += [[f"tried {name}", f"{value:.2f}"] for name, value in repaired.tried.items()]
    print_table(["", ""], rows, title)
    if repaired.harms:
        print("This repair harms: on the held-out windows the pruned model without it is better.")


def ridge(text: str) -> float | str:
    return "auto" if text == "auto" else number(0, None)(text)
