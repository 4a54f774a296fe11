"""`pyprune tune`: time the GPU kernels' configurations on this GPU and keep the best."""

from __future__ import annotations

import argparse
import os
from typing import Any

from pyprune.commands.inputs import chosen_device, loaded_sizes
from pyprune.commands.options import MODEL_HELP, add_json, add_stored_dtype, at_least, command, device
from pyprune.commands.output import Bar, print_json, print_table
from pyprune.errors import InputError


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "tune",
        "tune the GPU kernels' configurations on this GPU",
        "Time the block sizes of the Triton kernels for a model's shapes on this GPU, and write the fastest to a file "
        "that the kernels read from then on. Weights are random; only the model's configuration is read. Each "
        "candidate's result is checked before it is timed. No other command tunes anything.",
        "pyprune tune --model shape:llama-7b",
        "pyprune tune --device cuda:1 --model smollm2-135m --dtype bf16 --out tuning.json",
    )
    parser.add_argument(
        "--model", metavar="MODEL", default="shape:llama-7b", help=f"{MODEL_HELP} (default: shape:llama-7b)"
    )
    add_stored_dtype(parser, "dtype of weights and cache")
    parser.add_argument(
        "--device", type=device, default="cuda", metavar="D", help="cuda or cuda:N, the GPU to time on (default: cuda)"
    )
    parser.add_argument(
        "--rows",
        type=rows,
        metavar="N,...",
        help="numbers of rows to tune for, out of 1,2,16,32,64; each serves all up to it (default: all)",
    )
    parser.add_argument(
        "--jobs",
        type=at_least(1),
        metavar="N",
        help="kernels compiled in parallel (default: one per core, at most 16)",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the file to update; entries of other GPUs and models stay (default: $PYPRUNE_TUNING, else "
        "pyprune/tuning.json in the user's cache directory)",
    )
    add_json(parser)


def rows(text: str) -> tuple[int, ...]:
    """Some of the classes of skinny products."""
    accepted = ("1", "2", "16", "32", "64")
    classes = text.split(",")
    if not set(classes) <= set(accepted) or len(set(classes)) < len(classes):
        raise argparse.ArgumentTypeError(f"{text!r}: one or more of {','.join(accepted)}, each once, are expected")
    return tuple(map(int, classes))


def run(options: argparse.Namespace) -> None:
    """Time the GPU kernels' configurations for the shapes of a model and keep the best in a file."""
    if options.device == "cpu":
        raise InputError("--device cpu: tune times GPU kernels; cuda or cuda:N is expected")
    from pyprune.ops import gpu

    gpu.require_triton("tune")
    from functools import partial

    from pyprune.study.destination import require_file
    from pyprune.study.kernel_tuning import entries, tune_model
    from pyprune.study.tuning_cases import ROWS
    from pyprune.triton_kernels import tuning

    gpu_device, path = chosen_device(options), require_file(options.out or tuning.location())
    decoder = loaded_sizes(options.model, options.dtype)
    with Bar() as bar:
        jobs = options.jobs or min(os.cpu_count() or 1, 16)
        machine, results = tune_model(decoder, gpu_device, path, partial(bar, "tuning"), options.rows or ROWS, jobs)
    if options.json:
        refused = [reason for result in results for reason in result.refusals()]
        file = tuning.to_json(entries(results, machine))
        return print_json({"model": decoder.name, "file": str(path), **file, "refused": refused})
    rows = []
    for result in results:
        shape, tuned = result.case.shape, result.tuned
        times = [f"{1e6 * tuned.fixed_seconds:.1f}", f"{1e6 * tuned.seconds:.1f}"]
        tries = f"{result.timed} of {result.timed + len(result.refused)}"
        gain = f"{tuned.fixed_seconds / tuned.seconds:.2f}x"
        rows.append([result.case.operator, str(shape.rows), f"{shape.columns} x {shape.inner}", tries, *times, gain])
    header = ["operator", "rows", "up to", "timed", "table, us", "best, us", "gain"]
    print_table(header, rows, f"{decoder.name}, written to {path}")
