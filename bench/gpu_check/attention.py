"""Part: causal attention of scoring's shapes, torch's own SDPA against ours: by it is decided which scoring takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu_check.environment import gpu_report
from bench.gpu_check.race import fit, free
from bench.gpu_check.settings import Save, Settings
from pyprune import ops
from pyprune.models.shapes import SHAPES
from pyprune.study.measure import speedup
from pyprune.triton_kernels.timing import interleaved

SPECS, TOKENS, ROUNDS = ("llama-7b", "llama-1b"), 128, 15
VARIANTS, SAMPLES = (1, 17, 33), 10
"""A block of a model with 32 of them runs 1 to 33 variants at once, of 10 samples each."""

DRY_SPECS, DRY_TOKENS, DRY_ROUNDS, DRY_VARIANTS, DRY_SAMPLES = ("tiny",), 24, 2, (1, 3), 2
CHECKED = 2
"""Sequences that are compared with float64."""


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """For each model's heads and number of sequences: raw seconds of both, interleaved, and their errors.

    Both get q [B, T, N, D] and keys and values [B, G, T, D], and give [B, T, N*D].
    """
    dry, device = settings.dry_run, torch.device(settings.device)
    specs, tokens, rounds = (DRY_SPECS, DRY_TOKENS, DRY_ROUNDS) if dry else (SPECS, TOKENS, ROUNDS)
    variants, samples = (DRY_VARIANTS, DRY_SAMPLES) if dry else (VARIANTS, SAMPLES)
    result: dict[str, Any] = {"gpu": gpu_report(), "dtype": "bfloat16", "tokens": tokens, "timings": []}
    generator = torch.Generator(device).manual_seed(settings.seed)
    for spec in specs:
        shape = SHAPES[spec]
        for sequences in (count * samples for count in variants):
            q, keys, values = (
                torch.randn(sequences, *size, generator=generator, device=device).to(torch.bfloat16)
                for size in (
                    (tokens, shape.heads, shape.head_dim),
                    *[(shape.kv_heads, tokens, shape.head_dim)] * 2,
                )
            )
            positions = torch.arange(tokens, device=device).expand(sequences, tokens).contiguous()
            contestants: dict[str, Callable[[], Tensor]] = {
                "sdpa": partial(sdpa, q, keys, values),
                "pyprune": partial(ours, q, keys, values, positions),
            }
            ready, errors = fit(contestants, device)
            seconds = interleaved(ready, device, rounds)
            line = {"model": spec, "heads": [shape.heads, shape.kv_heads, shape.head_dim], "sequences": sequences}
            found = {"seconds": seconds, "failures": errors, "errors": accuracy(ready, q, keys, values)}
            if len(seconds) == 2:
                found["speedup"] = speedup(seconds["sdpa"], seconds["pyprune"])
            result["timings"].append({**line, **found})
            save(result)
            del q, keys, values, contestants, ready
            free(device)
    return result


def sdpa(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """torch's causal attention, as `pyprune.runtime.sequence` calls it."""
    grouped = q.shape[2] != keys.shape[1]
    context = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, is_causal=True, enable_gqa=grouped)
    return context.transpose(1, 2).flatten(2)


def ours(q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """Our operator; positions [B, T]: every token's own."""
    return ops.decode_attention(q, keys, values, positions, q.shape[3] ** -0.5).flatten(2)


def accuracy(ready: dict[str, Callable[[], Tensor]], q: Tensor, keys: Tensor, values: Tensor) -> dict[str, float]:
    """Largest error of each on the first sequences, relative to the largest true value."""
    exact = sdpa(*(one[:CHECKED].double() for one in (q, keys, values)))
    scale = exact.abs().max()
    return {name: float((run()[:CHECKED].double() - exact).abs().max() / scale) for name, run in ready.items()}
