"""Part: scoring every block by perplexity, all at once, against one forward of Hugging Face for each removed block."""

from __future__ import annotations

from typing import Any

import torch

import pyprune
from bench.gpu_check import predict
from bench.gpu_check.environment import gpu_report
from bench.gpu_check.race import quiet, race
from bench.gpu_check.settings import Save, Settings
from bench.gpu_check.timeline import timeline
from bench.naive import naive_scores
from pyprune.models.transformers_model import to_transformers
from pyprune.study.measure import speedup, spread

SPEC, SAMPLES, TOKENS, RUNS = "shape:llama-7b", 10, 128, 2
DRY_SPEC, DRY_SAMPLES, DRY_TOKENS, DRY_RUNS = "shape:tiny", 2, 16, 1


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """Seconds of both, interleaved, and the largest relative difference of their scores."""
    quiet()
    dry, device = settings.dry_run, torch.device(settings.device)
    spec, samples, tokens, runs = (
        (DRY_SPEC, DRY_SAMPLES, DRY_TOKENS, DRY_RUNS) if dry else (SPEC, SAMPLES, TOKENS, RUNS)
    )
    decoder = pyprune.load(spec, dtype=torch.bfloat16, device=device)
    model = to_transformers(decoder)
    generator = torch.Generator().manual_seed(settings.seed)
    ids = torch.randint(0, decoder.vocab_size, (samples, tokens), generator=generator)
    device_ids, values = ids.to(device), {}

    def ours() -> None:
        scores = pyprune.score(decoder, ids)
        values["pyprune"] = [scores.baseline, *scores.values]

    def naive() -> None:
        values["naive"] = naive_scores(model, device_ids)

    seconds, errors = race({"pyprune": ours, "naive": naive}, device, runs)
    result: dict[str, Any] = {
        "gpu": gpu_report(), "model": spec, "dtype": "bfloat16", "samples": samples, "tokens": tokens,
        "blocks": len(decoder.blocks), "seconds": seconds, "errors": errors, "scores": values,
    }  # fmt: skip
    if "pyprune" in seconds:
        result["median_seconds"] = spread(seconds["pyprune"])["median"]
        if settings.bandwidth:
            machine = predict.measured_machine(settings, device)
            result["predicted_seconds"] = predict.scoring_seconds(decoder, samples, tokens, machine)
        result["timeline"] = timeline(ours, device, 1)
        save(result)
    if len(seconds) == 2:
        result["speedup"] = speedup(seconds["naive"], seconds["pyprune"])
        pairs = zip(values["pyprune"], values["naive"], strict=True)
        result["largest_relative_difference"] = max(abs(a - b) / b for a, b in pairs)
    return result


def warm(settings: Settings) -> str:
    """Score once with a short model of the same sizes."""
    spec = DRY_SPEC if settings.dry_run else f"{SPEC},blocks=2"
    samples, tokens = (DRY_SAMPLES, DRY_TOKENS) if settings.dry_run else (SAMPLES, TOKENS)
    decoder = pyprune.load(spec, dtype=torch.bfloat16, device=settings.device)
    pyprune.score(decoder, torch.zeros(samples, tokens, dtype=torch.int64))
    return f"{spec}, {samples} x {tokens}"
