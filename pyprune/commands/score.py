"""`pyprune score`: rank the units of a model by what their removal costs, and compare two such rankings."""

from __future__ import annotations

import argparse
from typing import Any

from pyprune.commands.candidates import add_candidates, chosen_candidates, measures_other
from pyprune.commands.criterion import add_criterion, refuse_criterion
from pyprune.commands.inputs import (
    chosen_amount,
    chosen_device,
    init_distributed,
    loaded_any,
    measured_scores,
    remove_journal,
    require_scorable,
)
from pyprune.commands.options import (
    MODEL_HELP,
    SCORED_DTYPE,
    TEXT_OPTIONS,
    add_amount,
    add_device,
    add_json,
    add_memory,
    add_resume,
    add_stored_dtype,
    add_stream,
    add_text,
    add_unit,
    command,
    refuse_ignored,
)
from pyprune.commands.output import Bar, is_rank_zero, print_json, print_table
from pyprune.errors import InputError

SHOWN_DIFFERENCES = 8


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "score",
        "rank blocks or sublayers by the cost of removing them",
        "Rank the units of a model (blocks or sublayers) by its perplexity without each of them (Shortened LLaMA, "
        "section 3.1), or by another criterion. The table lists the most removable units first. --out saves the scores "
        "for prune; --plot draws them. --against compares two sets of scores: rank correlation, what each would "
        "remove, and where they differ most. --candidates scores prunings instead of units, by --measure.",
        "pyprune score smollm2-135m --text demo:boolq --out boolq.json",
        "pyprune score smollm2-135m --criterion taylor --protect first=4,last=2",
        "pyprune score smollm2-135m --candidates prunings --measure kl,ppl --out candidates.json",
        "pyprune score boolq.json --against sms.json --count 6 --plot boolq-sms.png",
        "torchrun --nproc-per-node 2 -m pyprune score smollm2-135m --out scores.json --resume",
    )
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL_HELP}; or a .json file written by --out")
    add_unit(parser, "what to score: whole blocks, attention sublayers, FFN sublayers, or sublayers of both kinds")
    add_criterion(parser)
    add_candidates(parser)
    add_text(parser)
    add_stored_dtype(parser, SCORED_DTYPE)
    add_device(parser)
    parser.add_argument("--out", metavar="FILE", help="JSON file for the scores, replaced if it exists (default: none)")
    parser.add_argument("--against", metavar="FILE", help="scores written by --out, to compare with (default: none)")
    add_amount(parser, "to be compared by --against or marked by --plot")
    parser.add_argument(
        "--plot",
        metavar="FILE.png",
        help="figure of the scores, one bar per unit; with --against, of both sets (default: none)",
    )
    add_memory(parser)
    add_stream(parser)
    add_resume(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Rank the units of a model by what their removal costs; compare the ranking with another."""
    from pyprune.study.destination import require_figure, require_file

    if options.out is not None:
        require_file(options.out)
    if options.plot is not None:
        require_figure(options.plot)
    amount = chosen_amount(options)
    for name in {"count", "ratio"} & amount.keys():
        if options.against is None and options.plot is None:
            raise InputError(f"--{name} {amount[name]}: needs --against or --plot")
    other = None if options.against is None else _read(options.against)
    if other is not None:
        _contrast(other, other, amount)  # an amount that cannot be had is refused before the slow scoring
        if not options.model.endswith(".json") and other.unit != (options.unit or "block"):
            raise InputError(
                f"--against {options.against}: its scores are of unit {other.unit}; --unit {other.unit} is expected"
            )
    scores = _given(options) if options.model.endswith(".json") else _measured(options)
    if not is_rank_zero():
        return None
    if options.out is not None:  # before what could still fail
        scores.to_json(options.out)
        remove_journal(options)
    contrast = None if other is None else _contrast(scores, other, amount)
    if options.plot is not None:
        _plot(options.plot, scores, contrast, amount)
    if options.json:
        return print_json(scores.to_dict() if contrast is None else contrast.to_dict())
    if contrast is None:
        _print_scores(scores)
    else:
        _print_contrast(contrast)


def _read(path: str) -> Any:
    from pyprune.scoring.scores import Scores

    return Scores.from_json(path)


def _given(options: argparse.Namespace) -> Any:
    reason = f"needs a model to score; {options.model} has scores already"
    refuse_ignored(options, reason, *TEXT_OPTIONS, "unit", "dtype", "device", "out", "candidates", "measure", "labels")
    refuse_ignored(options, reason, "repair_samples", "memory", "stream", "resume")
    refuse_criterion(options, reason)
    if options.protect is not None and options.against is None and options.plot is None:
        raise InputError(f"--protect {options.protect}: {reason}; --against or --plot accept it")
    return _read(options.model)


def _measured(options: argparse.Namespace) -> Any:
    unit = options.unit or "block"
    measured = chosen_candidates(options) if measures_other(options) else {}
    if options.labels is None:
        require_scorable(options, unit)
    device = chosen_device(options)
    init_distributed(device)
    decoder = loaded_any(options.model, options.dtype, device, options.stream)
    with Bar() as bar:
        return measured_scores(options, decoder, unit, bar, **measured)


def _contrast(scores: Any, other: Any, amount: dict[str, Any]) -> Any:
    from pyprune.scoring import contrast

    return contrast(scores, other, **amount)


def _plot(path: str, scores: Any, contrast: Any, amount: dict[str, Any]) -> None:
    from pyprune.files import write_bytes
    from pyprune.study.contrast_plot import side_by_side
    from pyprune.study.score_plots import chosen_bars

    write_bytes(path, chosen_bars(scores, **amount) if contrast is None else side_by_side(contrast))


def _print_scores(scores: Any) -> None:
    if scores.candidates is not None or scores.measures:
        return _print_measures(scores)
    values = dict(zip(scores.units, scores.values, strict=True))
    heads = ["place", "unit", scores.criterion]
    heads += ["of the unpruned"] if scores.baseline else []
    heads += [""] if scores.protected else []
    rows = []
    for place, (unit, index) in enumerate(scores.order(), start=1):
        value = values[unit, index]
        row = [str(place), f"{unit} {index}", f"{value:.6g}"]
        row += [f"{value / scores.baseline:.4g}x"] if scores.baseline else []
        row += ["protected" if (unit, index) in scores.protected else ""] if scores.protected else []
        rows.append(row)
    baseline = "" if scores.baseline is None else f", unpruned model {scores.baseline:.6g}"
    print_table(heads, rows, f"{scores.model}: {scores.criterion}{baseline}; the most removable first")


def _print_measures(scores: Any) -> None:
    """A column a measure; the first ranks."""
    from pyprune.scoring.scores import Measured

    measures = scores.measures or {scores.criterion: Measured(scores.baseline, scores.values)}
    names = dict(zip(scores.units, scores.names(), strict=True))
    places = {unit: place for place, unit in enumerate(scores.units)}
    rows = [
        [str(rank), names[unit], *(f"{measured.values[places[unit]]:.6g}" for measured in measures.values())]
        for rank, unit in enumerate(scores.order(), start=1)
    ]
    rows.append(["", "unpruned model", *(f"{measured.baseline:.6g}" for measured in measures.values())])
    what = "unit" if scores.candidates is None else "candidate"
    print_table(["place", what, *measures], rows, f"{scores.model}: the lowest {scores.criterion} first")


def _print_contrast(contrast: Any) -> None:
    from pyprune.scoring.contrast import named

    def units(given: list[tuple[str, int]]) -> str:
        return ", ".join(str(index) if kind == "block" else f"{kind} {index}" for kind, index in given) or "none"

    def number(value: float | None) -> str:
        return "undefined: all scores of one set are equal" if value is None else f"{value:.3f}"

    shared = f"{contrast.overlap:.0%} of the removed units; {contrast.overlap_by_chance:.0%} expected by chance"
    facts = [
        ["A", named(contrast.a)],
        ["B", named(contrast.b)],
        ["Spearman's rank correlation", number(contrast.correlation.spearman)],
        ["Kendall's tau-b", number(contrast.correlation.kendall)],
        ["removed under A", units(contrast.dropped_a)],
        ["removed under B", units(contrast.dropped_b)],
        ["removed under both", units(contrast.both)],
        ["overlap", shared],
    ]
    names = " and ".join(dict.fromkeys((contrast.a.model, contrast.b.model)))
    print_table(["", ""], facts, f"{names}: two scores of {contrast.correlation.units} units")
    rows = [
        [
            f"{difference.unit[0]} {difference.unit[1]}",
            *(f"{n:g}" for n in (difference.place_a, difference.place_b)),
            *_relative(contrast, difference),
        ]
        for difference in contrast.differences[:SHOWN_DIFFERENCES]
    ]
    title = "Where they differ most (place 1 is the most removable)"
    print_table(["unit", "place under A", "under B", "score under A", "under B"], rows, title)


def _relative(contrast: Any, difference: Any) -> list[str]:
    """A difference's scores, over the whole model's where there is one: those of two texts have no common scale."""
    pairs = ((difference.score_a, contrast.a.baseline), (difference.score_b, contrast.b.baseline))
    return [f"{score / baseline:.4g}x" if baseline else f"{score:.6g}" for score, baseline in pairs]
