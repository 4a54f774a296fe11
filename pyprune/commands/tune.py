"""`pyprune tune`: time the GPU kernels' configurations on this GPU and keep the best."""

from __future__ import annotations

import argparse
import os
from typing import Any

from pyprune.commands.inputs import chosen_device, loaded_sizes
from pyprune.commands.options import MODEL_HELP, add_dtype, add_json, at_least, command, device
from pyprune.commands.output import Bar, print_json, print_table
from pyprune.errors import InputError


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "tune",
        "time the GPU kernels' configurations on this GPU and keep the best",
        "Time the block sizes of the Triton kernels for the shapes of a model on the GPU at hand and keep the quickest "
        "in a file, where the kernels find them. Weights are random: of the model only its "
        "configuration is read. Every candidate's result is compared before it is timed. Nothing is tuned at any other "
        "time: without the file a fixed table holds.",
        "pyprune tune --model shape:llama-7b",
        "pyprune tune --device cuda:1 --model smollm2-135m --dtype bf16 --out tuning.json",
    )
    parser.add_argument(
        "--model", metavar="MODEL", default="shape:llama-7b", help=f"{MODEL_HELP} (default: shape:llama-7b)"
    )
    add_dtype(parser, None, "dtype of weights and cache (default: the checkpoint's own)")
    parser.add_argument(
        "--device", type=device, default="cuda", metavar="D", help="cuda or cuda:N, to time on (default: cuda)"
    )
    parser.add_argument(
        "--rows", type=rows, metavar="N,...", help="classes of few rows, some of 1,2,16,32,64 (default: all of them)"
    )
    parser.add_argument(
        "--jobs",
        type=at_least(1),
        metavar="N",
        help="kernels compiled at a time (default: a core each, up to 16)",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the file; what it has of other GPUs and models stays (default: $PYPRUNE_TUNING, else pyprune/tuning.json "
        "in the user's cache directory)",
    )
    add_json(parser)


def rows(text: str) -> tuple[int, ...]:
    """Some of the classes of few rows."""
    known = ("1", "2", "16", "32", "64")
    words = text.split(",")
    if not set(words) <= set(known) or len(set(words)) < len(words):
        raise argparse.ArgumentTypeError(f"{text}: one or more of {','.join(known)} are expected")
    return tuple(map(int, words))


def run(options: argparse.Namespace) -> None:
    """Time the GPU kernels' configurations for the shapes of a model and keep the best in a file."""
    if options.device == "cpu":
        raise InputError("--device cpu: GPU kernels are timed; cuda or cuda:N is expected")
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
        here, found = tune_model(decoder, gpu_device, path, partial(bar, "tuning"), options.rows or ROWS, jobs)
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
