"""Scoring SmolLM2's 30 blocks on 10 x 128 tokens in float32, against the naive loop on the same batch."""

from __future__ import annotations

import dataclasses
from statistics import median

import torch
import torch.nn.functional as F

from bench.rounds import Side
from bench.tables import FASTER, interval_text
from pyprune import score, to_transformers
from pyprune.scoring.calibration import calibration


def test_block_scores_against_the_naive_batched_loop(interleaved, benchmark, table, smollm2):
    samples = calibration(smollm2).input_ids
    count = len(smollm2.blocks)
    models = [to_transformers(smollm2)]
    for n in range(count):
        kept = tuple(block for block in smollm2.blocks if block.index != n)
        models.append(to_transformers(dataclasses.replace(smollm2, blocks=kept)))  # weights are shared: no copies
    results: dict[str, list[float]] = {}

    @torch.inference_mode()
    def naive() -> None:
        losses = []
        for model in models:
            logits = model(samples, use_cache=False).logits[:, :-1]
            losses.append(F.cross_entropy(logits.flatten(0, 1), samples[:, 1:].flatten()))
        results["naive"] = [float(loss.exp()) for loss in losses]

    def ours() -> None:
        found = score(smollm2, samples)
        results["ours"] = [found.baseline, *found.values]

    seconds = interleaved({"pyprune": Side(ours), "naive": Side(naive)}, 3, warmups=0)
    worst = max(abs(a / b - 1) for a, b in zip(results["ours"], results["naive"], strict=True))
    benchmark.extra_info["largest_relative_difference"] = worst
    table(
        f"scores of {count} blocks, {samples.shape[0]} x {samples.shape[1]} tokens, float32",
        {
            "seconds": f"{median(seconds['pyprune']):.1f}",
            "naive batched loop, seconds": f"{median(seconds['naive']):.1f}",
            FASTER: interval_text(benchmark.extra_info["ratio"]["naive"]),
        },
    )
    assert worst < 1e-4
