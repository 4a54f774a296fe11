"""Part: decoding of large shapes, Hugging Face (sdpa) against pyprune, and the share of the bandwidth each uses."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch

import pyprune
from bench.gpu_check.environment import gpu_report
from bench.gpu_check.race import free, quiet, race
from bench.gpu_check.settings import Save, Settings
from pyprune.study.compare import hugging_face, ours
from pyprune.study.measure import speedup

SPECS, BATCHES, PROMPT, NEW, RUNS = ("shape:llama-7b", "shape:llama-1b"), (1, 4, 16), 12, 32, 4
DRY_SPECS, DRY_BATCHES, DRY_NEW, DRY_RUNS = ("shape:tiny",), (1, 2), 3, 1


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """For each shape and batch: raw seconds of generating 1 and L new tokens, interleaved, and what follows from them.

    The share is bytes_per_token over the seconds of one decode step (the difference of the two, over L - 1) over the
    measured bandwidth. Weights are random, so speed is all that means anything.
    """
    quiet()
    dry = settings.dry_run
    device = torch.device(settings.device)
    specs, batches = (DRY_SPECS, DRY_BATCHES) if dry else (SPECS, BATCHES)
    new, runs = (DRY_NEW, DRY_RUNS) if dry else (NEW, RUNS)
    result: dict[str, Any] = {
        "gpu": gpu_report(), "prompt_tokens": PROMPT, "new_tokens": new, "bandwidth": settings.bandwidth, "timings": [],
    }  # fmt: skip
    for spec in specs:
        decoder = pyprune.load(spec, dtype=torch.bfloat16, device=device)
        engines = {"hf": hugging_face(decoder), "pyprune": ours(decoder, max(batches), PROMPT + new)}
        generator = torch.Generator().manual_seed(settings.seed)
        prompts = torch.randint(0, decoder.vocab_size, (max(batches), PROMPT), generator=generator).to(device)
        for batch in batches:
            contestants = {
                (name, length): partial(generate, prompts[:batch], length)
                for name, generate in engines.items()
                for length in (new, 1)
            }
            samples, errors = race(contestants, device, runs)
            line = timing(samples, errors, new, decoder.bytes_per_token(), settings.bandwidth)
            result["timings"].append({"model": spec, "dtype": "bfloat16", "batch": batch, **line})
            save(result)
        del decoder, engines, contestants
        free(device)
    return result


def timing(
    samples: dict[tuple[str, int], list[float]], errors: dict[tuple[str, int], str], new: int, size: int,
    bandwidth: float | None,
) -> dict[str, Any]:  # fmt: skip
    """One line of the result: raw samples, step seconds and bandwidth share of each engine, our speed-up over the peer.

    `samples`: seconds for (engine, new tokens), new tokens being 1 or `new`; `size`: bytes that one step reads.
    """
    line: dict[str, Any] = {
        "bytes_per_token": size,
        "seconds": {f"{name}, {length} new": seconds for (name, length), seconds in samples.items()},
        "errors": {f"{name}, {length} new": text for (name, length), text in errors.items()},
    }
    for name in ("hf", "pyprune"):
        if (name, new) in samples and (name, 1) in samples:
            pairs = zip(samples[name, new], samples[name, 1], strict=True)
            step = statistics.median((whole - one) / (new - 1) for whole, one in pairs)
            line[f"{name}_step_seconds"] = step
            line[f"{name}_share"] = None if bandwidth is None or step <= 0 else size / step / bandwidth
    if ("hf", new) in samples and ("pyprune", new) in samples:
        line["speedup"] = speedup(samples["hf", new], samples["pyprune", new])
    return line
