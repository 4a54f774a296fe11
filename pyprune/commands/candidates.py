"""The options of scoring candidates and of what they are measured by."""

from __future__ import annotations

import argparse
from typing import Any

from pyprune.commands.options import TEXT_OPTIONS, comma_separated, refuse_ignored
from pyprune.errors import InputError

_OF_UNITS = ("unit", "protect", "against", "plot", "count", "ratio")


def add_candidates(parser: argparse.ArgumentParser) -> None:
    """--candidates, --measure and --labels."""
    parser.add_argument(
        "--candidates",
        metavar="DIR",
        help="score these prunings instead of units, each alone: a directory of NAME.json files, or of "
        "NAME/pruning.json, with compensation.safetensors beside it if there is one (default: none)",
    )
    parser.add_argument(
        "--measure",
        type=comma_separated,
        metavar="M,N",
        help="what to measure: ppl, kl (divergence from the original, in nats), cosine (distance of the last hidden "
        "states), top1 (share of changed top-1 predictions), finercut (distance of the logits), task-loss (loss on "
        "--labels); several take one pass, and the first ranks (default: ppl)",
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="labelled samples in place of --text: a safetensors file of input_ids and labels [samples, tokens], -100 "
        "for no label, and attention_mask if samples are padded (default: none)",
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
    reason = f"needs --criterion ppl, not {options.criterion}"
    for name in ("candidates", "measure", "labels"):
        if getattr(options, name) is not None and options.criterion not in (None, "ppl"):
            raise InputError(f"--{name}: {reason}")
    if options.candidates is not None:
        for name in _OF_UNITS:
            if getattr(options, name) is not None:
                raise InputError(f"--{name} {getattr(options, name)}: does not go with --candidates")
        chosen["candidates"] = read_prunings(options.candidates)
    if ("task-loss" in chosen["measure"]) != (options.labels is not None):
        raise InputError("--labels FILE and --measure task-loss are expected together")
    if options.labels is not None:
        refuse_ignored(options, "does not go with --labels, which has the samples", *TEXT_OPTIONS)
        samples = read_labelled(options.labels)
        chosen |= {"input_ids": samples.input_ids, "attention_mask": samples.mask, "labels": samples.labels}
        chosen["calibration"] = samples.fingerprint
    return chosen
