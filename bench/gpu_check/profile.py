"""Part: where a decode step and a scoring pass spend the device's time, kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import pyprune
from bench.gpu_check.environment import gpu_report
from bench.gpu_check.settings import Save, Settings
from pyprune.study.device import synchroniser

SPEC, BATCHES, PROMPT, NEW, SAMPLES, TOKENS = "shape:llama-7b", (1, 4, 16), 12, 9, 10, 128
DRY_SPEC, DRY_BATCHES, DRY_SAMPLES, DRY_TOKENS = "shape:tiny", (1,), 2, 16
KERNELS = 16
"""The most that are told of each run, those that took longest."""


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """Seconds of each kernel, summed, in generating NEW tokens (the prompt's pass included) and in one scoring pass."""
    dry, device = settings.dry_run, torch.device(settings.device)
    spec, batches, samples, tokens = (
        (DRY_SPEC, DRY_BATCHES, DRY_SAMPLES, DRY_TOKENS) if dry else (SPEC, BATCHES, SAMPLES, TOKENS)
    )
    decoder = pyprune.load(spec, dtype=torch.bfloat16, device=device)
    engine = pyprune.Engine(decoder, max_batch=max(batches), max_len=PROMPT + NEW)
    generator = torch.Generator().manual_seed(settings.seed)
    result: dict[str, Any] = {"gpu": gpu_report(), "model": spec, "dtype": "bfloat16", "runs": []}
    for batch in batches:
        prompts = torch.randint(0, decoder.vocab_size, (batch, PROMPT), generator=generator).to(device)
        told = {"what": f"{NEW} new tokens, batch {batch}"}
        result["runs"].append({**told, **spent(lambda p=prompts: engine.generate(p, max_new_tokens=NEW), device)})
        save(result)
    ids = torch.randint(0, decoder.vocab_size, (samples, tokens), generator=generator)
    told = {"what": f"scores of {len(decoder.blocks)} blocks, {samples} x {tokens} tokens"}
    result["runs"].append({**told, **spent(lambda: pyprune.score(decoder, ids), device)})
    return result


def spent(call: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """The kernels of one call, after one that is not counted: their launches and seconds, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    synchronise = synchroniser(device) or (lambda: None)
    call()
    synchronise()
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        call()
        synchronise()
    on_device = device.type == "cuda"
    found: dict[str, list[float]] = {}
    for event in profiler.key_averages():
        taken = event.self_device_time_total if on_device else event.self_cpu_time_total
        if taken > 0:
            found[event.key[:120]] = [event.count, taken / 1e6]
    longest = sorted(found.items(), key=lambda item: -item[1][1])
    kernels = [{"kernel": name, "launches": int(n), "seconds": seconds} for name, (n, seconds) in longest]
    return {"seconds": sum(one["seconds"] for one in kernels), "kernels": kernels[:KERNELS]}
