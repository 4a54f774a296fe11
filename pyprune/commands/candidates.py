"""The options of scoring candidates and of what they are measured by."""

from __future__ import annotations

import argparse
from typing import Any

from pyprune.commands.options import comma_separated
from pyprune.errors import InputError

_OF_UNITS = ("unit", "protect", "against", "plot", "count", "ratio")


def add_candidates(parser: argparse.ArgumentParser) -> None:
    """--candidates, --measure and --labels."""
    parser.add_argument(
        "--candidates",
        metavar="DIR",
        help="score these prunings instead of units, each as if it were the model: a directory of NAME.json files, or "
        "NAME/pruning.json with its compensation.safetensors beside it (default: none)",
    )
    parser.add_argument(
        "--measure",
        type=comma_separated,
        metavar="M,N",
        help="what is measured: ppl, kl (divergence from the original, nats), cosine (distance of the last states), "
        "top1 (share of other top-1 predictions), finercut (distance of the logits), task-loss (of --labels); several "
        "come from one pass, the first ranks (default: ppl)",
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="samples with answers, in place of --text: a safetensors file of input_ids and labels [samples, tokens], "
        "-100 where none is, and attention_mask where samples are padded (default: none)",
    )


def measures_other(options: argparse.Namespace) -> bool:
    """Whether candidates, or units by other measures than perplexity alone, are to be scored."""
    return options.candidates is not None or options.measure is not None or options.labels is not None


def chosen_candidates(options: argparse.Namespace) -> dict[str, Any]:
    """What these options say, as `pyprune.score` takes it; InputError for what they cannot go with, and for files that
    cannot be read."""
    from pyprune.scoring.calibration import read_labelled
    from pyprune.scoring.candidates import read_prunings
    from pyprune.scoring.measures import measure_names

    chosen: dict[str, Any] = {"measure": measure_names(options.measure)}
    reason = f"goes with --criterion ppl, not {options.criterion}"
    for name in ("candidates", "measure", "labels"):
        if getattr(options, name) is not None and options.criterion not in (None, "ppl"):
            raise InputError(f"--{name}: {reason}")
    if options.candidates is not None:
        for name in _OF_UNITS:
            if getattr(options, name) is not None:
                raise InputError(f"--{name} {getattr(options, name)}: belongs to units, and --candidates are scored")
        chosen["candidates"] = read_prunings(options.candidates)
    if ("task-loss" in chosen["measure"]) != (options.labels is not None):
        raise InputError("--labels: measure task-loss and the file of its labels are expected together")
    if options.labels is not None:
        if options.text is not None:
            raise InputError(f"--text {options.text}: --labels {options.labels} has the samples already")
        samples = read_labelled(options.labels)
        chosen |= {"input_ids": samples.input_ids, "attention_mask": samples.mask, "labels": samples.labels}
        chosen["calibration"] = samples.fingerprint
    return chosen
