"""`pyprune prune`: remove blocks, sublayers or widths and save the smaller checkpoint."""

from __future__ import annotations

import argparse
from typing import Any

from pyprune.commands.criterion import REPAIR_SAMPLES, add_criterion, refuse_criterion
from pyprune.commands.inputs import (
    calibration_windows,
    init_distributed,
    loaded_any,
    measured_scores,
    remove_journal,
    repair_journal_beside,
    require_scorable,
    require_texts,
    searched,
    searched_with_repair,
    take_text,
)
from pyprune.commands.narrowing import (
    add_narrowing,
    measured_narrowing,
    narrowing_dry_run,
    refuse_narrowing,
    require_narrowable,
)
from pyprune.commands.options import (
    MODEL_HELP,
    SEARCHES,
    add_json,
    add_memory,
    add_resume,
    add_text,
    add_unit,
    at_least,
    command,
    indices,
)
from pyprune.commands.output import Bar, is_rank_zero, print_json, print_table
from pyprune.commands.repair import METHODS_HELP, TEXT, default_samples, print_repair, repair_method
from pyprune.errors import InputError

_SIZES = {"blocks": "blocks", "FFN width": "ffn_width", "heads": "heads", "KV heads": "kv_heads"}
_FIELDS = {"block": "blocks", "mha": "mha", "ffn": "ffn"}


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "prune",
        "remove blocks, sublayers or width and save the checkpoint",
        "Remove blocks, attention or FFN sublayers, or width (KV groups and FFN neurons), and save the smaller "
        "checkpoint. Give exactly one of --depth, --blocks and --width. --depth and --width first measure on "
        "calibration text; --scores spares that for --depth. Plain transformers loads the result, unless blocks differ "
        "in size or lack a sublayer: then import pyprune first. The weights keep the checkpoint's dtype.",
        "pyprune prune smollm2-135m --depth 20% --protect first=4,last=2 --out smollm2-depth20",
        "pyprune prune smollm2-135m --depth 6 --criterion block-influence --out smollm2-bi6",
        "pyprune prune smollm2-135m --depth 6 --search greedy --repair linear --repair-each --out smollm2-mended6",
        "pyprune prune smollm2-135m --width 20% --pad-to 64 --out smollm2-width20",
        "pyprune prune smollm2-135m --width 20% --method flap --align 64 --out smollm2-flap20",
        "pyprune prune smollm2-135m --width 20% --method llm-pruner --variant param_mix,global --out smollm2-taylor20",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    ways = parser.add_mutually_exclusive_group(required=True)
    ways.add_argument(
        "--depth",
        metavar="N|P%",
        help="remove the N most removable units, or the number nearest to P%% of all parameters",
    )
    ways.add_argument(
        "--blocks",
        type=indices,
        metavar="I,J",
        help="remove these blocks, or with --unit their sublayers, numbered from 0 in the original model",
    )
    ways.add_argument(
        "--width",
        metavar="P%",
        help="narrow FFN and heads by --method, to the size that --depth P%% would give",
    )
    add_unit(
        parser,
        "what --depth and --blocks remove: whole blocks, attention sublayers, FFN sublayers, or (--depth only) "
        "sublayers of both kinds",
    )
    parser.add_argument(
        "--search",
        choices=SEARCHES,
        help="how --depth chooses: one ranking, a new ranking after each removal, or the best run of consecutive "
        "blocks (default: one-shot)",
    )
    parser.add_argument(
        "--pad-to",
        type=at_least(1),
        metavar="N",
        help="pad FFN widths with zeros to a multiple of N neurons (default: no padding)",
    )
    parser.add_argument("--scores", metavar="FILE", help="scores written by score --out (default: score now)")
    add_criterion(parser)
    add_narrowing(parser)
    add_text(parser)
    parser.add_argument(
        "--repair",
        type=repair_method,
        metavar="METHOD",
        help=f"repair the pruned model, by {METHODS_HELP} (default: no repair)",
    )
    parser.add_argument(
        "--repair-each",
        action="store_true",
        help="with --search greedy and --repair: repair after each removal and choose the next unit on the repaired "
        "model; repairs and scores use different windows (default: off)",
    )
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="new or empty directory for the checkpoint (required)"
    )
    add_memory(parser)
    add_resume(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Remove blocks, sublayers or widths and save the smaller checkpoint."""
    from pyprune import pruning
    from pyprune.files import remove_directory
    from pyprune.pruning import Pruning
    from pyprune.recovery.journal import require_journal
    from pyprune.recovery.methods import AT_CUT, chain_of, require_samples
    from pyprune.scoring.scores import Scores
    from pyprune.study.destination import require_directory

    require_directory(options.out)
    _check_prune_options(options)
    amount = None if options.depth is None else pruning.parse_amount(options.depth)
    width_ratio = None if options.width is None else _width_ratio(options.width)
    unit = options.unit or "block"
    named = {} if options.blocks is None else {_FIELDS[unit]: options.blocks}
    padding = Pruning(pad_to=options.pad_to)
    chosen = Pruning(**named, made_by="named on the command line")
    ranked = None if options.scores is None else Scores.from_json(options.scores)
    if ranked is not None and options.unit is not None and ranked.unit != options.unit:
        raise InputError(f"--unit {options.unit}: the scores in {options.scores} are of unit {ranked.unit}")
    follows_on = options.repair is not None and not options.repair_each
    for_repair = argparse.Namespace(**vars(options))
    for_repair.samples = options.repair_samples or (default_samples(options.repair) if follows_on else REPAIR_SAMPLES)
    if options.repair is not None:
        # A search holds windows out whatever the repair.
        chain = chain_of("auto" if options.repair_each else options.repair)
        require_samples(for_repair.samples, chain, "auto")
    if follows_on and (folder := repair_journal_beside(options)) is not None:
        require_journal(folder)
    if options.repair is not None:
        with_text = for_repair if follows_on else options
        take_text(with_text, TEXT)
        require_texts(with_text)
    if options.width is not None:
        require_narrowable(options)
    elif options.depth is not None and ranked is None:
        require_scorable(options, unit)

    init_distributed()
    decoder = loaded_any(options.model)
    runs_itself = _checked_whole_blocks(options, decoder, chosen | padding)
    if runs_itself and options.repair is not None:
        raise InputError(
            f"--repair {options.repair}: transformers runs {options.model}; a LLaMA-style model is expected"
        )
    if amount is not None and follows_on and set(chain_of(options.repair)) & set(AT_CUT):
        # Nothing stands before it that such a repair could change.
        options.protect = ",".join(filter(None, (options.protect, str(decoder.sizes().blocks[0].index))))
    found = None
    with Bar() as bar:
        if amount is not None:
            limits = {"ratio": amount.ratio, "count": amount.count, "protect": options.protect}
            # With scores that are all equal first: an amount that cannot be had is refused before the slow scoring.
            trial = pruning.depth(ranked or _equal_scores(decoder, unit), decoder, **limits)
            if not runs_itself:  # there each removal is tried with its own layers
                _require_savable(pruning.apply(decoder, trial | padding))
                _require_repairable(options, decoder, trial)
            if options.repair_each:
                found = searched_with_repair(options, decoder, amount, bar)
                chosen = found.pruning()
            elif options.search in (None, "one-shot"):
                ranked = ranked or measured_scores(options, decoder, unit, bar)
                chosen = pruning.depth(ranked, decoder, **limits)
            else:
                chosen = searched(options, decoder, options.search, amount, bar).pruning()
        elif width_ratio is not None:
            trial = narrowing_dry_run(options, decoder, width_ratio)
            _require_savable(pruning.apply(decoder, trial | padding))
            _require_repairable(options, decoder, trial)
            chosen = measured_narrowing(options, decoder, width_ratio, bar)
        if not is_rank_zero() and options.repair is None:
            return
        pruned, repaired = pruning.apply(decoder, chosen | padding), None
        if found is not None:
            repaired = found.repaired
            pruned = pruning.apply(repaired.decoder, padding) if padding else repaired.decoder
        elif options.repair is not None:
            repaired = _repaired(for_repair, decoder, pruned, bar)
            pruned = repaired.decoder
        if not is_rank_zero():
            return
    pruned.save(options.out)
    remove_journal(options)
    if follows_on and (folder := repair_journal_beside(options)) is not None:
        remove_directory(folder)
    _report_sizes(options, decoder, pruned, repaired, found)


def _require_repairable(options: argparse.Namespace, decoder: Any, trial: Any) -> None:
    """Raise InputError where --repair is not for what the trial removes, before the slow scoring."""
    if options.repair is None:
        return
    from pyprune import pruning
    from pyprune.recovery.methods import chain_of, require_kind, require_processes
    from pyprune.scoring.distributed import process_group

    require_processes(options.repair, process_group(decoder.device).size)
    pruned = pruning.apply(decoder, trial)
    for method in chain_of(options.repair):
        require_kind(decoder, pruned, method)


def _repaired(options: argparse.Namespace, decoder: Any, pruned: Any, bar: Bar) -> Any:
    """The pruned model repaired on the options' calibration text, with what its held-out windows say."""
    from functools import partial

    from pyprune.recovery import repair_with_report

    return repair_with_report(
        decoder,
        pruned,
        calibration_windows(options, decoder).input_ids,
        options.repair,
        seed=options.seed,
        memory=options.memory,
        resume=repair_journal_beside(options),
        progress=partial(bar, f"repairing, {options.repair}"),
    )


def _width_ratio(text: str) -> float:
    """The share of the parameters that --width names; InputError for anything else."""
    from pyprune import pruning

    ratio = pruning.parse_amount(text).ratio
    if ratio is None:
        raise InputError(f"--width {text}: a share of the parameters such as 20% is expected, not a count")
    return ratio


def _check_prune_options(options: argparse.Namespace) -> None:
    """Raise InputError for an option that the chosen way of pruning would ignore."""
    if options.repair_each and (options.repair is None or options.search != "greedy"):
        raise InputError("--repair-each: needs both --search greedy and --repair")
    if options.repair_each and options.criterion not in (None, "ppl", "ppl-after-repair"):
        raise InputError(f"--criterion {options.criterion}: with --repair-each, ppl or ppl-after-repair is expected")
    if options.repair_each and {"flap-bias", "stat"} & set(options.repair.split("+")):
        raise InputError(
            f"--repair {options.repair}: repairs heads and neurons, but --repair-each removes blocks or sublayers"
        )
    scores_repaired = options.depth is not None and options.criterion == "ppl-after-repair"
    if options.repair_samples is not None and options.repair is None and not scores_repaired:
        raise InputError(f"--repair-samples {options.repair_samples}: needs --repair or --criterion ppl-after-repair")
    if options.depth is None:
        narrows = options.width is not None  # which takes --protect and --variant too
        for name in ("scores", "search", *(() if narrows else ("protect",))):
            if getattr(options, name) is not None:
                raise InputError(f"--{name} {getattr(options, name)}: needs --depth")
        refuse_criterion(options, "needs --depth", but=("variant",) if narrows else ())
    if options.width is None:
        refuse_narrowing(options, "needs --width")
    if options.scores is not None:
        refuse_criterion(options, "does not go with --scores, which holds scores already")
        if options.search not in (None, "one-shot"):
            raise InputError(
                f"--scores {options.scores}: does not go with --search {options.search}, which computes its own scores"
            )
    if options.repair is None and (options.depth is None or options.scores is not None):
        reason = "the calibration text is read with --depth without --scores, with --width, and with --repair"
        for name in ("text", "field") if options.width is None else ():
            if getattr(options, name) is not None:
                raise InputError(f"--{name} {getattr(options, name)}: {reason}")
        if options.memory is not None:
            raise InputError(f"--memory {options.memory}: belongs to scoring, searches and repairs")
    if options.resume and (options.depth is None or options.scores is not None) and options.repair is None:
        raise InputError("--resume: needs --depth without --scores, or --repair; scoring, searches and repairs resume")
    if options.width is not None and options.unit is not None:
        raise InputError(f"--unit {options.unit}: needs --depth or --blocks; --width narrows every block")
    if options.blocks is not None and options.unit not in (None, *_FIELDS):
        raise InputError(f"--unit {options.unit}: with --blocks, one of {', '.join(_FIELDS)} is expected")


def _checked_whole_blocks(options: argparse.Namespace, decoder: Any, named: Any) -> bool:
    """Whether transformers runs this decoder: then only whole blocks can go. InputError where something else is to."""
    from pyprune.models.transformers_decoder import TransformersDecoder

    if not isinstance(decoder, TransformersDecoder):
        return False
    if options.width is not None:
        raise InputError(f"--width {options.width}: only whole blocks can be removed from {decoder.name}; --depth or"
                         " --blocks is expected")  # fmt: skip
    decoder.check(named)
    return True


def _equal_scores(decoder: Any, unit: str) -> Any:
    """Scores for a dry run: what goes is any, how much goes is as it will be."""
    from pyprune.scoring.removals import units_of
    from pyprune.scoring.scores import Scores

    units = list(units_of(decoder, unit))
    return Scores(decoder.name, "equal", unit, None, units, [0.0] * len(units))


def _require_savable(decoder: Any) -> None:
    """Raise InputError now when a checkpoint cannot express the decoder."""
    from pyprune.models.ragged import checkpoint_config

    checkpoint_config(decoder)


def _report_sizes(options: argparse.Namespace, decoder: Any, pruned: Any, repaired: Any, found: Any) -> None:
    before, after = (_described_sizes(model, decoder.parameters()) for model in (decoder, pruned))
    if options.json:
        removed = None if pruned.pruning is None else pruned.pruning.to_dict()
        sizes = {"before": before, "after": after}
        repair = {} if repaired is None else {"repair": repaired.to_dict()}
        search = {} if found is None else {"search": found.search.to_dict()}
        return print_json({"model": decoder.name, "out": options.out, **sizes, "pruning": removed, **repair, **search})
    rows = [
        ["parameters", f"{before['parameters']:,}", f"{after['parameters']:,} ({after['removed_share']:.1%} removed)"],
        *([name, str(before[key]), str(after[key])] for name, key in _SIZES.items() if key in before),
        *(
            [name, f"{before[key] / 1e6:.2f}", f"{after[key] / 1e6:.2f}"]
            for name, key in (("MB per token", "bytes_per_token"), ("MB", "bytes"))
            if key in before
        ),
    ]
    print_table(["", "before", "after"], rows, f"{decoder.name}, written to {options.out}")
    if repaired is not None:
        print_repair(repaired, f"repaired by {repaired.method}")


def _described_sizes(decoder: Any, original_parameters: int) -> dict[str, Any]:
    from pyprune.models.decoder import Decoder
    from pyprune.models.sizes import describe_sizes

    if isinstance(decoder, Decoder):
        return describe_sizes(decoder, original_parameters)
    return dict(decoder.describe_sizes(original_parameters))
