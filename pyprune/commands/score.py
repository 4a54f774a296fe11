"""`pyprune score`: rank the units of a model by what their removal costs."""

from __future__ import annotations

import argparse
from typing import Any

from pyprune.commands.criterion import add_criterion
from pyprune.commands.inputs import chosen_device, loaded, measured_scores, require_scorable
from pyprune.commands.options import MODEL_HELP, add_device, add_dtype, add_json, add_text, add_unit, command
from pyprune.commands.output import Bar, print_json, print_table


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "score",
        "rank the units of a model by what their removal costs",
        "Rank the units of a model by the perplexity it has without each of them, on a few calibration windows "
        "(Shortened LLaMA, section 3.1), or by another criterion. The table shows the most removable first; --out "
        "keeps the scores for prune.",
        "pyprune score smollm2-135m --out scores.json",
        "pyprune score smollm2-135m --unit mha --samples 4 --seq-len 64",
        "pyprune score smollm2-135m --criterion taylor --protect first=4,last=2",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_unit(parser, "what is removed and scored: blocks, only their attention or FFN halves, or both kinds of halves")
    add_criterion(parser)
    add_text(parser)
    add_dtype(
        parser,
        None,
        "dtype of the weights when scored; activations are float32 on a CPU (default: the checkpoint's own)",
    )
    add_device(parser)
    parser.add_argument(
        "--out", metavar="FILE", help="JSON file for the scores; an old one is replaced (default: none)"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Rank the units of a model by what their removal costs."""
    from pyprune.study.destination import require_file

    if options.out is not None:
        require_file(options.out)
    unit = options.unit or "block"
    require_scorable(options, unit)
    decoder = loaded(options.model, options.dtype, chosen_device(options))
    with Bar() as bar:
        scores = measured_scores(options, decoder, unit, bar)
    if options.out is not None:
        scores.to_json(options.out)
    if options.json:
        return print_json(scores.to_dict())
    values = dict(zip(scores.units, scores.values, strict=True))
    heads = ["place", "unit", scores.criterion]
    heads += ["of the whole"] if scores.baseline else []
    heads += [""] if scores.protected else []
    rows = []
    for place, (unit, index) in enumerate(scores.order(), start=1):
        value = values[unit, index]
        row = [str(place), f"{unit} {index}", f"{value:.6g}"]
        row += [f"{value / scores.baseline:.4g}x"] if scores.baseline else []
        row += ["protected" if (unit, index) in scores.protected else ""] if scores.protected else []
        rows.append(row)
    baseline = "" if scores.baseline is None else f", whole model {scores.baseline:.6g}"
    print_table(heads, rows, f"{decoder.name}: {scores.criterion}{baseline}; the most removable first")
