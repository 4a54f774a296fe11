"""Part: decode steps of a large shape, timed as replays by the device's events, kernel by kernel beside the prediction.

Weights are random, so speed is all that means anything. A prompt's pass is timed too, by the clock: where it is not
recorded the host's launches are what it waits for.
"""

from __future__ import annotations

import statistics
from functools import partial
from itertools import product
from typing import Any

import torch

import pyprune
from bench.gpu_check import predict
from bench.gpu_check.environment import gpu_report
from bench.gpu_check.launches import step_bytes
from bench.gpu_check.race import fit, free, race
from bench.gpu_check.replays import decode_replay, time_replays
from bench.gpu_check.settings import Save, Settings
from bench.gpu_check.timeline import timeline
from pyprune.models.decoder import Decoder

BATCHES, LENGTHS, PROMPT, ROUNDS, PER_ROUND = (1, 4, 16), (44, 140, 4096), 12, 7, 10
DRY_SPEC, DRY_BATCHES, DRY_LENGTHS, DRY_ROUNDS, DRY_PER_ROUND = "shape:tiny", (1, 2), (20, 40), 2, 2
PROFILED = 140
"""The cache whose steps are told kernel by kernel: that of the paper's 12 + 128 tokens."""


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """For each batch and cache size: seconds of a step at the cache's middle (beyond the prompt), raw and predicted.

    `share`: the weights' bytes over the step's median over the bandwidth that this machine's run measured;
    `share_with_cache` counts the cache's bytes too.
    """
    dry, device = settings.dry_run, torch.device(settings.device)
    spec = DRY_SPEC if dry else settings.options["spec"]
    batches, lengths, rounds, per_round = (
        (DRY_BATCHES, DRY_LENGTHS, DRY_ROUNDS, DRY_PER_ROUND) if dry else (BATCHES, LENGTHS, ROUNDS, PER_ROUND)
    )
    decoder = pyprune.load(spec, dtype=torch.bfloat16, device=device)
    result: dict[str, Any] = {
        "gpu": gpu_report(), "model": spec, "dtype": "bfloat16", "bytes_per_token": decoder.bytes_per_token(),
        "bandwidth": settings.bandwidth, "prompt_tokens": PROMPT, "timings": [], "timelines": [], "prompts": [],
    }  # fmt: skip
    # The paper's cache first: what a part that is stopped has, is what matters.
    profiled = PROFILED if PROFILED in lengths else lengths[0]
    for length, batch in product(sorted(lengths, key=lambda size: size != profiled), batches):
        line: dict[str, Any] = {"batch": batch, "cache": length, "position": predict.middle(length)}
        result["timings"].append(line)
        try:
            engine, step = engine_and_step(decoder, batch, length, settings.seed)
            line["seconds"] = time_replays(step, device, rounds, per_round)
            line["recorded"] = bool(engine._graphs)
            judge(line, decoder, settings)
            save(result)
            if length == profiled:
                profile = {"batch": batch, "cache": length, **timeline(step, device, 3)}
                result["timelines"].append(profile)
            del engine, step
        except Exception as error:  # every kind: the text is the finding
            line["error"] = f"{type(error).__name__}: {error}"[:1500]
        save(result)
        free(device)
    result["prompts"] = prompts(decoder, batches, settings, rounds)
    return {**result, "gpu": gpu_report()}


def engine_and_step(decoder: Decoder, batch: int, length: int, seed: int) -> tuple[pyprune.Engine, Any]:
    """An engine with a cache of `length` rows and its recorded step at the cache's middle."""
    engine = pyprune.Engine(decoder, max_batch=batch, max_len=length)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, decoder.vocab_size, (batch, PROMPT), generator=generator).to(decoder.device)
    return engine, decode_replay(engine, ids, predict.middle(length))


def judge(line: dict[str, Any], decoder: Decoder, settings: Settings) -> None:
    """Add the median, the share of the bandwidth and the prediction."""
    line["median_seconds"] = step = statistics.median(line["seconds"])
    if settings.bandwidth:
        machine = predict.measured_machine(settings, decoder.device)
        line["share"] = decoder.bytes_per_token() / step / settings.bandwidth
        line["share_with_cache"] = step_bytes(decoder, line["batch"], line["position"]) / step / settings.bandwidth
        line["predicted_seconds"] = predict.decode_seconds(
            decoder, line["batch"], line["cache"], line["position"], machine
        )


def prompts(decoder: Decoder, batches: tuple[int, ...], settings: Settings, rounds: int) -> list[dict[str, Any]]:
    """Seconds of prompts of PROMPT tokens, by the clock, the device waited for."""
    engine = pyprune.Engine(decoder, max_batch=max(batches), max_len=2 * PROMPT)
    generator = torch.Generator().manual_seed(settings.seed)
    ids = torch.randint(0, decoder.vocab_size, (max(batches), PROMPT), generator=generator).to(decoder.device)
    passes = {batch: partial(engine.prefill, ids[:batch]) for batch in batches}
    fit(passes, decoder.device)  # twice: what is recorded at its second use is recorded before it is timed
    samples, errors = race(passes, decoder.device, rounds)
    lines: list[dict[str, Any]] = [
        {"batch": batch, "seconds": seconds, "median_seconds": statistics.median(seconds)}
        for batch, seconds in samples.items()
    ]
    if settings.bandwidth:
        machine = predict.measured_machine(settings, decoder.device)
        for line in lines:
            line["predicted_seconds"] = predict.prompt_seconds(decoder, line["batch"], machine)
    return [*lines, *({"batch": batch, "error": text} for batch, text in errors.items())]


def warm(settings: Settings) -> str:
    """Run once what the timed part will start, on a short model of the same sizes: its kernels compile and are kept."""
    dry, device = settings.dry_run, torch.device(settings.device)
    spec = DRY_SPEC if dry else f"{settings.options['spec']},blocks=2"
    decoder = pyprune.load(spec, dtype=torch.bfloat16, device=device)
    batches, lengths = (DRY_BATCHES, DRY_LENGTHS) if dry else (BATCHES, LENGTHS)
    for length, batch in product(lengths, batches):
        engine_and_step(decoder, batch, length, settings.seed)[1]()
    return f"{spec}, batches {batches}, caches {lengths}"
