"""Scoring all blocks of models that run through their own layers, against the naive batched loop: one forward pass of
all samples for each block left out, as published code runs it.

Random models of at least 100 million parameters: one like Gemma 3 (windows, two rotary embeddings, tied head of many
ids) and a mixture of experts. ANY_DECODER_SIZE=small runs small ones, to see that the script works.
"""

from __future__ import annotations

import math
import os
from statistics import median
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Qwen3MoeConfig

from bench.rounds import Side
from bench.tables import FASTER, interval_text
from bench.test_scoring import largest_difference
from pyprune import load_any, score

SMALL = os.environ.get("ANY_DECODER_SIZE") == "small"
SAMPLES, TOKENS = (3, 32) if SMALL else (10, 128)
ROUNDS = 3


def gemma3_like() -> Any:
    """The shape of Gemma 3 270M with a smaller vocabulary: five blocks with a window to one without."""
    return Gemma3TextConfig(
        vocab_size=999 if SMALL else 65536,
        hidden_size=64 if SMALL else 640,
        intermediate_size=128 if SMALL else 2048,
        num_hidden_layers=6 if SMALL else 18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16 if SMALL else 256,
        query_pre_attn_scalar=16 if SMALL else 256,
        sliding_window=16 if SMALL else 512,
        max_position_embeddings=2048,
    )


def mixture_of_experts() -> Any:
    """The form of Qwen3-MoE: 8 experts in every block, 2 of them for a token."""
    return Qwen3MoeConfig(
        vocab_size=999 if SMALL else 32768,
        hidden_size=64 if SMALL else 512,
        intermediate_size=128 if SMALL else 1024,
        moe_intermediate_size=48 if SMALL else 512,
        num_experts=8,
        num_experts_per_tok=2,
        num_hidden_layers=4 if SMALL else 16,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16 if SMALL else 64,
        max_position_embeddings=2048,
    )


@pytest.mark.parametrize("config", [gemma3_like, mixture_of_experts], ids=["gemma3", "moe"])
def test_block_scores_against_the_naive_batched_loop(interleaved, benchmark, table, config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(), dtype=torch.float32).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert SMALL or parameters >= 100_000_000
    ids = torch.randint(3, model.config.vocab_size, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(1))
    decoder = load_any(model)
    results: dict[str, list[float]] = {}

    def ours() -> None:
        scores = score(decoder, ids)
        results["pyprune"] = [scores.baseline, *scores.values]

    def naive() -> None:
        results["naive"] = naive_scores(model, ids)

    seconds = interleaved({"pyprune": Side(ours), "naive": Side(naive)}, ROUNDS, warmups=0)
    worst = largest_difference(*results.values())
    benchmark.extra_info.update(largest_relative_difference=worst, parameters=parameters)
    table(
        f"scores of {len(decoder.blocks)} blocks, {SAMPLES} x {TOKENS} tokens, float32, {parameters / 1e6:.0f} million"
        f" parameters, {type(model).__name__}",
        {
            "seconds": f"{median(seconds['pyprune']):.1f}",
            "naive batched loop": f"{median(seconds['naive']):.1f}",
            FASTER: interval_text(benchmark.extra_info["ratio"]["naive"]),
        },
    )
    assert worst < 1e-4


@torch.inference_mode()
def naive_scores(model: Any, ids: torch.Tensor) -> list[float]:
    """The perplexity of the whole model, then with each layer returning what it is given."""
    values = [_perplexity(model, ids)]
    for layer in model.model.layers:
        layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
        try:
            values.append(_perplexity(model, ids))
        finally:
            del layer.forward
    return values


def _perplexity(model: Any, ids: torch.Tensor) -> float:
    logits = model(ids, use_cache=False).logits[:, :-1]
    return math.exp(float(F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())))
