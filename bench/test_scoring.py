"""Scoring SmolLM2's 30 blocks in float32, once and in a greedy search, against the loops that published code runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from statistics import median
from typing import Any

import pytest

from bench.naive import naive_greedy, naive_scores
from bench.rounds import Side
from bench.tables import FASTER, interval_text
from pyprune import score, search, to_transformers
from pyprune.scoring.calibration import calibration


def test_block_scores_against_the_naive_loops(interleaved, benchmark, table, smollm2):
    """One forward pass for each removed block: of all samples at once, and one sample at a time as the paper's code."""
    samples = calibration(smollm2).input_ids
    model = to_transformers(smollm2)
    results: dict[str, list[float]] = {}

    def ours() -> None:
        scores = score(smollm2, samples)
        results["pyprune"] = [scores.baseline, *scores.values]

    def naive(batch: int | None) -> Any:
        return lambda: results.update({f"batch {batch}": naive_scores(model, samples, batch)})

    sides = {"pyprune": Side(ours), "batched": Side(naive(None)), "batch 1": Side(naive(1))}
    seconds = interleaved(sides, 3, warmups=0)
    worst = largest_difference(*results.values())
    benchmark.extra_info["largest_relative_difference"] = worst
    ratio = benchmark.extra_info["ratio"]
    table(
        f"scores of {len(smollm2.blocks)} blocks, {samples.shape[0]} x {samples.shape[1]} tokens, float32",
        {
            "seconds": f"{median(seconds['pyprune']):.1f}",
            "naive batched loop": f"{median(seconds['batched']):.1f}",
            FASTER: interval_text(ratio["batched"]),
            "naive loop at batch 1": f"{median(seconds['batch 1']):.1f}",
            f"{FASTER} ": interval_text(ratio["batch 1"]),
        },
    )
    assert worst < 1e-4


def test_greedy_removal_of_8_blocks_against_its_naive_form(interleaved, benchmark, table, smollm2):
    """SLEB: one forward pass of all samples for each candidate of each round. 2 samples, so that it takes minutes."""
    samples = calibration(smollm2, samples=2).input_ids
    model, count = to_transformers(smollm2), 8
    results: dict[str, Any] = {}

    def ours() -> None:
        results["pyprune"] = search(smollm2, samples, "greedy", count=count)

    def naive() -> None:
        results["naive"] = naive_greedy(model, samples, count)

    seconds = interleaved({"pyprune": Side(ours), "naive": Side(naive)}, 3, warmups=0)
    result, (order, scores) = results["pyprune"], results["naive"]
    worst = largest_difference(result.scores, scores)
    benchmark.extra_info.update(
        largest_relative_difference=worst, cost=result.cost.to_dict(), naive=result.naive.to_dict(), order=order
    )
    table(
        f"greedy removal of {count} blocks, {samples.shape[0]} x {samples.shape[1]} tokens, float32",
        {
            "seconds": f"{median(seconds['pyprune']):.1f}",
            "naive": f"{median(seconds['naive']):.1f}",
            FASTER: interval_text(benchmark.extra_info["ratio"]["naive"]),
            "block passes": f"{result.cost.blocks:.0f} of {result.naive.blocks:.0f}",
        },
    )
    assert [index for _, index in result.order] == order
    assert worst < 1e-4


@pytest.mark.parametrize(
    ("work", "samples", "tokens"), [("score", 10, 128), ("score", 3, 64), ("score", 4, 8), ("greedy", 4, 128)]
)
def test_peak_memory_against_the_plan(benchmark, table, work: str, samples: int, tokens: int):
    """The growth of resident memory over the loaded model, in a process of its own."""
    command = [sys.executable, "-m", "bench.scoring_memory", "smollm2-135m", "--work", work, "--samples", str(samples)]
    command += ["--seq-len", str(tokens)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}

    def measure() -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        benchmark.extra_info.update(json.loads(done.stdout))

    benchmark.pedantic(measure, rounds=1)
    info = benchmark.extra_info
    table(
        "peak memory above the weights, MB",
        {
            "work": f"{work}, {samples} x {tokens} tokens",
            "measured": f"{info['measured'] / 1e6:.0f}",
            "planned": f"{info['planned'] / 1e6:.0f}",
            "measured / planned": f"{info['measured'] / info['planned']:.3f}",
            "logits would be": f"{info['logits'] / 1e6:.0f}",
        },
    )
    assert info["measured"] < 1.2 * info["planned"]


def largest_difference(first: list[float], *others: list[float]) -> float:
    return max(abs(a / b - 1) for other in others for a, b in zip(first, other, strict=True))
