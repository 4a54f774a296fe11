"""The command line: doctor, score, prune, compare, generate, plan. Options in, library calls, tables or JSON out."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from pyprune.cli_options import build_parser
from pyprune.cli_output import Bar, console, print_json, print_table, shown
from pyprune.errors import InputError

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0 done, 1 failure, 2 bad input, 130 interrupted.

    An error is one line on stderr, with the traceback before it under --debug.
    """
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
        options = build_parser().parse_args(argv)
        if options.command is None:
            raise InputError(f"no command: {', '.join(COMMANDS)} or --help is expected")
        COMMANDS[options.command](options)
        sys.stdout.flush()
        return DONE
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _stopped("interrupted", INTERRUPTED, debug)
    except InputError as error:
        return _stopped(str(error), BAD_INPUT, debug)
    except BrokenPipeError:
        # The reader, head or less, has left; nothing may be written to stdout any more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        return _stopped(_reason(error), FAILED, debug)


def doctor(options: argparse.Namespace) -> None:
    """Say what pyprune runs on here, and what is missing."""
    from pyprune.models.demo import DEMO_MODEL, demo_model_path
    from pyprune.ops import gpu, native
    from pyprune.runtime import memory
    from pyprune.scoring.calibration import require_text
    from pyprune.study import machine
    from pyprune.study.page import machine_cells

    found = {
        "machine": machine.describe(),
        "available_memory_bytes": memory.available(),
        "native": native.report(),
        "gpu": gpu.report(),
        "demonstration": {"model": _present(demo_model_path), "texts": _present(lambda: require_text(None))},
    }
    if options.json:
        return print_json(found)
    lines = machine_cells(found["machine"])
    free = found["available_memory_bytes"]
    lines.append(["free memory", "unknown" if free is None else f"{free / 2**30:.1f} GiB"])
    native_facts = {name: value for name, value in found["native"].items() if value not in (None, [], {})}
    for name, reason in native_facts.pop("isas_unused", {}).items():
        native_facts[f"{name}, not used"] = reason
    lines += [[f"native: {name.replace('_', ' ')}", shown(value)] for name, value in native_facts.items()]
    lines.append(["GPU kernels", found["gpu"]["reason"]])
    lines.append([f"model {DEMO_MODEL}", found["demonstration"]["model"] or "installed"])
    lines.append(["demonstration texts", found["demonstration"]["texts"] or "installed"])
    print_table(["", ""], lines)


def score(options: argparse.Namespace) -> None:
    """Rank the units of a model by what their removal costs."""
    from pyprune.study.destination import require_file

    if options.out is not None:
        require_file(options.out)
    _check_texts(options)
    decoder = _load(options.model, options.dtype, _device(options))
    with Bar() as bar:
        scores = _scores(options, decoder, options.unit or "block", bar)
    if options.out is not None:
        scores.to_json(options.out)
    if options.json:
        return print_json(scores.to_dict())
    values = dict(zip(scores.units, scores.values, strict=True))
    rows = []
    for place, (unit, index) in enumerate(scores.order(), start=1):
        value = values[unit, index]
        change = "" if not scores.baseline else f"{value / scores.baseline:.4g}x"
        rows.append([str(place), f"{unit} {index}", f"{value:.6g}", change])
    baseline = "" if scores.baseline is None else f", whole model {scores.baseline:.6g}"
    title = f"{decoder.name}: {scores.criterion} without the unit{baseline}; the most removable first"
    print_table(["place", "unit", scores.criterion, "of the whole"], rows, title)


def prune(options: argparse.Namespace) -> None:
    """Remove blocks, halves or widths and save the smaller checkpoint."""
    from pyprune import pruning
    from pyprune.pruning import Pruning
    from pyprune.scoring.scores import Scores
    from pyprune.study.destination import require_directory

    require_directory(options.out)
    _check_prune_options(options)
    amount = pruning.parse_amount(options.depth or options.width) if options.blocks is None else None
    if options.width is not None and amount is not None and amount.ratio is None:
        raise InputError(f"--width {options.width}: a share of the parameters such as 20% is expected, not a count")
    named = {} if options.blocks is None else {_FIELDS[options.unit or "block"]: options.blocks}
    padding = Pruning(pad_to=options.pad_to)
    chosen = Pruning(**named, made_by="named on the command line")
    ranked = None if options.scores is None else Scores.from_json(options.scores)
    if ranked is not None and options.unit is not None and ranked.unit != options.unit:
        raise InputError(f"--unit {options.unit}: the scores in {options.scores} are of unit {ranked.unit}")
    measured = options.width is not None or (options.depth is not None and ranked is None)
    if measured:
        _check_texts(options)

    decoder = _load(options.model)
    with Bar() as bar:
        if options.depth is not None:
            unit = options.unit or "block"
            limits = {"ratio": amount.ratio, "count": amount.count, "protect": options.protect}
            # With scores that are all equal first: an amount that cannot be had is told before the slow scoring.
            rehearsed = pruning.depth(ranked or _rehearsal(decoder, unit), decoder, **limits)
            _require_savable(pruning.apply(decoder, rehearsed | padding))
            if ranked is None:
                ranked = _scores(options, decoder, unit, bar)
            chosen = pruning.depth(ranked, decoder, **limits)
        elif options.width is not None:
            chosen = _narrowing(options, decoder, amount.ratio, bar)
        pruned = pruning.apply(decoder, chosen | padding)
    pruned.save(options.out)
    _tell_pruned(options, decoder, pruned)


def compare(options: argparse.Namespace) -> None:
    """Measure depth and width pruning of one model side by side."""
    from pyprune.study.compare import compare as run
    from pyprune.study.report import terminal

    with Bar() as bar:
        comparison = run(
            options.model,
            ratios=options.ratios,
            batches=options.batch,
            protocol=options.protocol,
            dtype=_torch_dtype(options.dtype),
            text=options.text,
            eval_text=options.eval_text,
            samples=options.samples,
            seq_len=options.seq_len,
            seed=options.seed,
            pad_multiple=options.pad_to,
            out=options.out,
            progress=bar,
            device=options.device,
        )
    if options.json:
        return print_json({**comparison.results, "table": comparison.table()})
    screen = console()
    for part in terminal(comparison.results):
        screen.print(part)
    if options.out is not None:
        screen.print(f"Report written: {os.path.join(options.out, 'index.html')}", markup=False, highlight=False)


def generate(options: argparse.Namespace) -> None:
    """Continue prompts, with blocks or halves skipped at run time."""
    from pyprune import cli_generate

    cli_generate.check_options(options)
    pruning = cli_generate.pruning_of(options)
    decoder = _load(options.model, options.dtype, _device(options))
    pruning.check(decoder)
    continuations = cli_generate.Continuations(options, decoder, pruning)
    if options.stream:
        return continuations.print_as_it_comes()
    before = time.perf_counter()
    sequences = continuations.sequences()
    seconds = time.perf_counter() - before
    if options.json:
        return print_json(
            {
                "model": decoder.name,
                **sequences[0],  # the only one, mostly
                "skip": {"blocks": list(pruning.blocks), "mha": list(pruning.mha), "ffn": list(pruning.ffn)},
                "seconds": seconds,
                "tokens_per_s": sum(len(sequence["ids"]) for sequence in sequences) / seconds,
                "sequences": sequences,
            }
        )
    for sequence in sequences:
        shape_ids = sequence["text"] is None
        print(" ".join(map(str, sequence["ids"])) if shape_ids else sequence["prompt"] + sequence["text"])


def plan(options: argparse.Namespace) -> None:
    """Say how much memory a model and its engine will take."""
    if not options.memory:
        raise InputError("plan: nothing to plan; --memory is expected")
    from pyprune.runtime import memory
    from pyprune.runtime.planner import default_length, plan_memory

    skip = {"blocks": options.skip, "mha": options.skip_mha, "ffn": options.skip_ffn}
    decoder = _sizes(options.model, options.dtype)
    lengths = options.len or [default_length(decoder)]
    plans = {(m, n): plan_memory(decoder, m, n, skip=skip) for m in options.batch for n in lengths}
    free = memory.available()
    if options.json:
        return print_json(
            {
                "model": decoder.name,
                "dtype": str(decoder.dtype).removeprefix("torch."),
                "parameters": decoder.parameters(),
                "skip": skip,
                "available_memory_bytes": free,
                "plans": [{"batch": m, "len": n, **plan.to_dict()} for (m, n), plan in plans.items()],
            }
        )
    skips = any(plan.untouched for plan in plans.values())
    header = ["batch", "tokens", "weights", "KV cache", "workspace", "total", *(["used"] if skips else []), "fits here"]
    rows = []
    for (m, n), plan in plans.items():
        used = plan.total - plan.untouched
        sizes = [plan.weights, plan.cache, plan.workspace, plan.total, *([used] if skips else [])]
        fits = "unknown" if free is None else shown(used <= free)
        rows.append([str(m), str(n), *(f"{size / 2**30:.3f}" for size in sizes), fits])
    print_table(header, rows, f"{decoder.name} in {str(decoder.dtype).removeprefix('torch.')}: GiB of memory")


def tune(options: argparse.Namespace) -> None:
    """Time the GPU kernels' configurations for the shapes of a model and keep the best in a file."""
    if options.device == "cpu":
        raise InputError("--device cpu: GPU kernels are timed; cuda or cuda:N is expected")
    from pyprune.ops import gpu

    gpu.require_triton("tune")
    from functools import partial

    from pyprune.study.destination import require_file
    from pyprune.triton_kernels import tuning
    from pyprune.triton_kernels.tune import entries, tune_model

    device, path = _device(options), require_file(options.out or tuning.location())
    decoder = _sizes(options.model, options.dtype)
    with Bar() as bar:
        here, found = tune_model(decoder, device, path, partial(bar, "tuning"))
    if options.json:
        refused = [told for one in found for told in one.refusals()]
        file = tuning.to_json(entries(found, here))
        return print_json({"model": decoder.name, "file": str(path), **file, "refused": refused})
    rows = []
    for one in found:
        shape, tuned = one.case.shape, one.tuned
        times = [f"{1e6 * tuned.fixed_seconds:.1f}", f"{1e6 * tuned.seconds:.1f}"]
        tries = f"{one.timed} of {one.timed + len(one.refused)}"
        gain = f"{tuned.fixed_seconds / tuned.seconds:.2f}x"
        rows.append([one.case.operator, str(shape.rows), f"{shape.columns} x {shape.inner}", tries, *times, gain])
    header = ["operator", "rows", "up to", "timed", "table, us", "best, us", "gain"]
    print_table(header, rows, f"{decoder.name}, written to {path}")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "doctor": doctor,
    "score": score,
    "prune": prune,
    "compare": compare,
    "generate": generate,
    "plan": plan,
    "tune": tune,
}

_FIELDS = {"block": "blocks", "mha": "mha", "ffn": "ffn"}


def _check_prune_options(options: argparse.Namespace) -> None:
    """Raise InputError for an option that the chosen way of pruning would ignore."""
    if options.depth is None:
        for name in ("protect", "scores"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name} {getattr(options, name)}: belongs to --depth, which was not given")
    if options.width is not None and options.unit is not None:
        raise InputError(f"--unit {options.unit}: belongs to --depth or --blocks; --width narrows every block")


def _rehearsal(decoder: Any, unit: str) -> Any:
    from pyprune.scoring.scores import Scores

    indices = [block.index for block in decoder.blocks if unit == "block" or getattr(block, unit) is not None]
    return Scores(decoder.name, "rehearsal", unit, None, [(unit, index) for index in indices], [0.0] * len(indices))


def _require_savable(decoder: Any) -> None:
    """Raise InputError now when a checkpoint cannot express the decoder."""
    from pyprune.models.families import family_of

    family_of(decoder.config["model_type"], decoder.name).plain_config(decoder)


def _narrowing(options: argparse.Namespace, decoder: Any, ratio: float, bar: Bar) -> Any:
    from pyprune import pruning
    from pyprune.pruning.budget import UniformSizes, depth_row, width_for
    from pyprune.scoring.calibration import calibration

    sizes = UniformSizes.of(pruning.pad(decoder, 1))
    groups, width = width_for(sizes, depth_row(sizes, ratio))
    # Any groups and neurons of that number: a size that cannot be saved is told before the slow part.
    layers = [block.index for block in decoder.blocks]
    rehearsed = pruning.Pruning(
        kv_groups={index: list(range(groups, sizes.kv_groups)) for index in layers if groups < sizes.kv_groups},
        neurons={index: list(range(width, sizes.width)) for index in layers if width < sizes.width},
    )
    if decoder.pruning is None:
        _require_savable(pruning.apply(decoder, rehearsed))
    windows = calibration(decoder, options.text, options.samples, options.seq_len, options.seed)
    bar("Wanda-sp", 0, 1)
    chosen = pruning.width(decoder, method="wanda-sp", ratio=ratio, calibration=windows.input_ids)
    bar("Wanda-sp", 1, 1)
    return chosen


def _tell_pruned(options: argparse.Namespace, decoder: Any, pruned: Any) -> None:
    from pyprune.study.compare import Row, describe

    before = describe(Row("before", "", None, decoder, decoder.pruning), decoder.parameters(), float("nan"))
    after = describe(Row("after", "", None, pruned, pruned.pruning), decoder.parameters(), float("nan"))
    kept = ("parameters", "removed_share", "blocks", "ffn_width", "heads", "kv_heads", "bytes_per_token")
    if options.json:
        sizes = {row["name"]: {key: row[key] for key in kept} for row in (before, after)}
        return print_json({"model": decoder.name, "out": options.out, **sizes, "pruning": pruned.pruning})
    rows = [
        ["parameters", f"{before['parameters']:,}", f"{after['parameters']:,} ({after['removed_share']:.1%} removed)"],
        *([name, str(before[key]), str(after[key])] for name, key in _SIZES.items()),
        ["MB per token", f"{before['bytes_per_token'] / 1e6:.2f}", f"{after['bytes_per_token'] / 1e6:.2f}"],
    ]
    print_table(["", "before", "after"], rows, f"{decoder.name}, written to {options.out}")


_SIZES = {"blocks": "blocks", "FFN width": "ffn_width", "heads": "heads", "KV heads": "kv_heads"}


def _scores(options: argparse.Namespace, decoder: Any, unit: str, bar: Bar) -> Any:
    from functools import partial

    from pyprune import scoring
    from pyprune.scoring.calibration import calibration

    windows = calibration(decoder, options.text, options.samples, options.seq_len, options.seed)
    return scoring.score(
        decoder,
        windows.input_ids,
        criterion="ppl",
        unit=unit,
        calibration=windows.fingerprint,
        progress=partial(bar, f"scoring, unit {unit}"),
    )


def _check_texts(options: argparse.Namespace) -> None:
    from pyprune.scoring.calibration import check_window_options, require_text

    check_window_options(options.samples, options.seq_len, options.seed)
    if options.text is not None or not options.model.startswith("shape:"):
        require_text(options.text)


def _device(options: argparse.Namespace) -> Any:
    from pyprune.models.load import require_device

    return require_device(options.device)


def _load(spec: str, dtype: str | None = None, device: Any = "cpu") -> Any:
    from transformers.utils import logging

    from pyprune.models import load

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return load(spec, dtype=None if dtype is None else _torch_dtype(dtype), device=device)


def _sizes(spec: str, dtype: str | None) -> Any:
    """The decoder without its weights, and without what transformers says about its configuration."""
    from transformers.utils import logging

    from pyprune.models import load_sizes

    logging.set_verbosity_error()
    return load_sizes(spec, dtype)


def _torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _present(find: Callable[[], object]) -> str | None:
    """None when it is there, else why not."""
    try:
        find()
    except InputError as error:
        return str(error)
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" for {error.filename}" if error.filename else ""
        return f"the disk is full: no space left{where}; nothing half-written was kept"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _stopped(message: str, code: int, debug: bool) -> int:
    if debug and code != INTERRUPTED:
        traceback.print_exc()
    line = " ".join(message.split())
    hint = "" if debug or code != FAILED else " (--debug shows the traceback)"
    print(f"pyprune: {line}{hint}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
