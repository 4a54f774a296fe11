"""Scoring a library of alternatives for SmolLM2's sublayers in float32, against one forward pass for each of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from statistics import median

import pytest

from bench.library import library, naive_candidates
from bench.rounds import Side
from bench.tables import FASTER, interval_text
from pyprune import score, to_transformers
from pyprune.scoring.calibration import calibration


@pytest.mark.parametrize(("blocks", "samples", "tokens"), [(30, 10, 128), (2, 2, 24)])
def test_a_library_of_alternatives_against_the_naive_loop(
    interleaved, benchmark, table, smollm2, blocks: int, samples: int, tokens: int
):
    """Six alternatives for each of 60 sublayers. The loop runs all samples at once, its narrow modules made before."""
    ids = calibration(smollm2, samples=samples, seq_len=tokens).input_ids
    model = to_transformers(smollm2)
    alternatives = library(smollm2, range(blocks))
    changes = [(one.block, one.modules(model.model.layers[one.block])) for one in alternatives]
    candidates = [one.candidate for one in alternatives]
    results: dict[str, list[float]] = {}

    def ours() -> None:
        scores = score(smollm2, ids, candidates=candidates)
        results["pyprune"] = [scores.baseline, *scores.values]

    def naive() -> None:
        results["naive"] = naive_candidates(model, ids, changes)

    seconds = interleaved({"pyprune": Side(ours), "naive": Side(naive)}, 1, warmups=0)
    worst = max(abs(a / b - 1) for a, b in zip(results["pyprune"], results["naive"], strict=True))
    benchmark.extra_info["largest_relative_difference"] = worst
    table(
        f"scores of a library of alternatives, {samples} x {tokens} tokens, float32",
        {
            "candidates": str(len(candidates)),
            "seconds": f"{median(seconds['pyprune']):.1f}",
            "naive batched loop": f"{median(seconds['naive']):.1f}",
            FASTER: interval_text(benchmark.extra_info["ratio"]["naive"]),
        },
    )
    assert worst < 1e-4


@pytest.mark.parametrize(("blocks", "samples", "tokens", "measure"), [(30, 10, 128, "ppl"), (6, 4, 64, "kl,cosine")])
def test_peak_memory_of_candidates_against_the_plan(
    benchmark, table, blocks: int, samples: int, tokens: int, measure: str
):
    """The growth of resident memory over the loaded model, in a process of its own."""
    command = [sys.executable, "-m", "bench.scoring_memory", "smollm2-135m", "--work", "candidates"]
    command += ["--samples", str(samples), "--seq-len", str(tokens), "--blocks", str(blocks), "--measure", measure]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}

    def measure_memory() -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        benchmark.extra_info.update(json.loads(done.stdout))

    benchmark.pedantic(measure_memory, rounds=1)
    info = benchmark.extra_info
    table(
        "peak memory of scoring candidates above the weights, MB",
        {
            "work": f"{12 * blocks} candidates, {samples} x {tokens} tokens, {measure}",
            "measured": f"{info['measured'] / 1e6:.0f}",
            "planned": f"{info['planned'] / 1e6:.0f}",
            "measured / planned": f"{info['measured'] / info['planned']:.3f}",
        },
    )
    assert info["measured"] < 1.2 * info["planned"]
