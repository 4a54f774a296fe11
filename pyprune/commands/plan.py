"""`pyprune plan`: how much memory a model and its engine will take."""

from __future__ import annotations

import argparse
from typing import Any

from pyprune.commands.inputs import loaded_sizes
from pyprune.commands.options import (
    MODEL_HELP,
    add_json,
    add_skip,
    add_stored_dtype,
    add_weight_format,
    at_least,
    comma_separated,
    command,
    numbers,
    refuse_ignored,
)
from pyprune.commands.output import print_json, print_table, shown
from pyprune.errors import InputError


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "plan",
        "show how much memory a model and its engine need",
        "Show how much memory a model and its engine need at full length: weights, the KV cache of M sequences of L "
        "tokens, and the workspace of prefill and decode, on a CPU or a GPU. Only the configuration is read, so the "
        "model need not fit here. The Python process needs about 0.25 GB more.",
        "pyprune plan smollm2-135m --memory --batch 16 --len 2048 --skip 5,14",
        "pyprune plan smollm2-135m --memory --candidates 360 --measure kl,ppl",
        "pyprune plan shape:vicuna-13b --memory --batch 1,16,64 --len 140,524 --dtype fp16",
    )
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL_HELP}; only its configuration is read")
    parser.add_argument("--memory", action="store_true", help="plan the memory (required; there is no other plan yet)")
    parser.add_argument(
        "--batch",
        type=numbers("batch sizes", "1,8"),
        default=[1],
        metavar="M,N",
        help="sequences in a batch, 1 to 256 (default: 1)",
    )
    parser.add_argument(
        "--len",
        type=numbers("lengths", "140,524"),
        metavar="L,K",
        help="tokens in a sequence, prompt and new tokens together (default: the model's context, at most 4096)",
    )
    parser.add_argument(
        "--candidates",
        type=at_least(1),
        metavar="N",
        help="plan scoring instead of an engine: memory beyond the weights for N candidates or units at once "
        "(default: none)",
    )
    parser.add_argument(
        "--samples",
        type=at_least(1),
        default=10,
        metavar="S",
        help="with --candidates: calibration windows (default: 10)",
    )
    parser.add_argument(
        "--seq-len",
        type=at_least(2),
        default=128,
        metavar="T",
        help="with --candidates: tokens in each window (default: 128)",
    )
    parser.add_argument(
        "--measure",
        type=comma_separated,
        metavar="M,N",
        help="with --candidates: what to measure, as in score (default: ppl)",
    )
    add_skip(parser)
    add_weight_format(parser)
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="device to plan for; this machine need not have it (default: cpu)",
    )
    add_stored_dtype(parser, "dtype of weights and cache")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Say how much memory a model and its engine will take."""
    if not options.memory:
        raise InputError("plan: --memory is expected")
    if options.candidates is not None:
        return _plan_scoring(options)
    refuse_ignored(options, "needs --candidates", "measure", "samples", "seq_len")
    import torch

    from pyprune.runtime import memory
    from pyprune.runtime.planner import default_length, plan_memory

    skip = {"blocks": options.skip, "mha": options.skip_mha, "ffn": options.skip_ffn}
    decoder = loaded_sizes(options.model, options.dtype)
    lengths = options.len or [default_length(decoder)]
    engines = [(batch, length) for batch in options.batch for length in lengths]
    stored = {"weight_format": options.weight_format, "device": options.device}
    plans = {engine: plan_memory(decoder, *engine, skip=skip, **stored) for engine in engines}
    present = options.device == "cpu" or torch.cuda.is_available()
    free = memory.available(options.device) if present else None
    if options.json:
        return print_json(
            {
                "model": decoder.name,
                "device": options.device,
                "dtype": str(decoder.dtype).removeprefix("torch."),
                "parameters": decoder.parameters(),
                "skip": skip,
                "weight_format": options.weight_format,
                "available_memory_bytes": free,
                "plans": [{"batch": m, "len": n, **plan.to_dict()} for (m, n), plan in plans.items()],
            }
        )
    skips = any(plan.untouched for plan in plans.values())
    converts = any(plan.making for plan in plans.values())
    extra = [*(["used"] if skips else []), *(["at first"] if converts else [])]
    header = ["batch", "tokens", "weights", "KV cache", "workspace", "total", *extra, "fits here"]
    dtype = str(decoder.dtype).removeprefix("torch.") + (f" ({options.weight_format})" if converts else "")
    rows = []
    for (m, n), plan in plans.items():
        used = plan.total - plan.untouched
        sizes = [plan.weights, plan.cache, plan.workspace, plan.total, *([used] if skips else [])]
        sizes += [plan.making] if converts else []
        fits = "unknown" if free is None else shown(plan.most <= free)
        rows.append([str(m), str(n), *(f"{size / 2**30:.3f}" for size in sizes), fits])
    print_table(header, rows, f"{decoder.name} in {dtype} on {options.device}: GiB of memory")


def _plan_scoring(options: argparse.Namespace) -> None:
    """Say how much memory scoring takes beyond the model."""
    from pyprune.scoring.measures import measure_names
    from pyprune.scoring.planning import plan_scoring

    engine = "batch", "len", "skip", "skip_mha", "skip_ffn", "weight_format"
    refuse_ignored(options, "plans an engine; does not go with --candidates", *engine)
    measures = measure_names(options.measure)
    decoder = loaded_sizes(options.model, options.dtype)
    shape = options.candidates, options.samples, options.seq_len
    size = plan_scoring(decoder, *shape, measure=measures, device=options.device)
    if options.json:
        return print_json(
            {
                "model": decoder.name,
                "device": options.device,
                "candidates": options.candidates,
                "samples": options.samples,
                "seq_len": options.seq_len,
                "measures": list(measures),
                "bytes": size.bytes,
            }
        )
    row = [*map(str, shape), ", ".join(measures), f"{size.bytes / 2**30:.3f}"]
    print_table(
        ["candidates", "samples", "tokens", "measures", "GiB"],
        [row],
        f"{decoder.name}: memory for scoring all at once, beyond the weights",
    )
