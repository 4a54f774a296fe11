"""Part: what a block costs that is left out by a mask on the device, beside one that the host does not even call."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch

import pyprune
from bench.gpu_check.environment import gpu_report
from bench.gpu_check.race import race
from bench.gpu_check.settings import Save, Settings
from pyprune.runtime.skip import Skip

SPEC, LEFT_OUT, PROMPT, NEW, RUNS = "shape:llama-7b", tuple(range(10, 18)), 12, 32, 7
DRY_SPEC, DRY_LEFT_OUT, DRY_NEW, DRY_RUNS = "shape:tiny", (1,), 3, 1


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """Raw seconds of 1 and L new tokens at batch 1: nothing left out, by the host, and by a mask (set, and all clear).

    `masked_share`: a masked block's seconds over a running block's, from the medians of a step.
    """
    dry, device = settings.dry_run, torch.device(settings.device)
    spec, gone, new, runs = (DRY_SPEC, DRY_LEFT_OUT, DRY_NEW, DRY_RUNS) if dry else (SPEC, LEFT_OUT, NEW, RUNS)
    decoder = pyprune.load(spec, dtype=torch.bfloat16, device=device)
    engine = pyprune.Engine(decoder, max_batch=1, max_len=PROMPT + new)
    generator = torch.Generator().manual_seed(settings.seed)
    prompt = torch.randint(0, decoder.vocab_size, (1, PROMPT), generator=generator).to(device)
    clear = torch.zeros(len(decoder.blocks), 2, dtype=torch.bool, device=device)
    mask = clear.clone()
    mask[list(gone)] = True
    ways: dict[str, Skip] = {"nothing": None, "host": list(gone), "mask": mask, "clear mask": clear}
    contestants = {
        (name, length): partial(engine.generate, prompt, max_new_tokens=length, skip=skip)
        for name, skip in ways.items()
        for length in (new, 1)
    }
    same = torch.equal(contestants["host", new](), contestants["mask", new]())
    samples, errors = race(contestants, device, runs)
    step = {
        name: statistics.median(
            (whole - one) / (new - 1) for whole, one in zip(samples[name, new], samples[name, 1], strict=True)
        )
        for name in ways
        if (name, new) in samples and (name, 1) in samples
    }
    result: dict[str, Any] = {
        "gpu": gpu_report(), "model": spec, "dtype": "bfloat16", "left_out": list(gone), "new_tokens": new,
        "same_tokens": same, "step_seconds": step, "errors": {f"{n}, {k} new": text for (n, k), text in errors.items()},
        "seconds": {f"{name}, {length} new": taken for (name, length), taken in samples.items()},
    }  # fmt: skip
    if len(step) == len(ways):
        result["block_seconds"] = (step["nothing"] - step["host"]) / len(gone)
        result["masked_block_seconds"] = (step["mask"] - step["host"]) / len(gone)
        result["masked_share"] = result["masked_block_seconds"] / result["block_seconds"]
        result["clear_mask_share"] = step["clear mask"] / step["nothing"] - 1
    return result
