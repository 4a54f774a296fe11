"""Scores of models with sliding windows, biases, q/k-norm and RoPE beyond the original context, as Hugging Face's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from pyprune import Pruning, apply, load, perplexity, score, to_transformers
from tests import seeds

SHAPE = "shape:hidden=48,blocks=4,heads=6,kv_heads=2,head_dim=10,ffn=71,vocab=131"
MODELS = ["family=mistral,window=5", "family=qwen2,window=5,full_blocks=2", "family=qwen3,window=5,full_blocks=1"]
S, T = 3, 23


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    return torch.randint(0, 131, (S, T), generator=seeds.generator(0))


def naive(model, ids, mask=None) -> float:
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits[:, :-1].double()
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    if mask is not None:
        losses = losses[(mask[:, 1:] * mask[:, :-1]) == 1]
    return math.exp(losses.mean())


@pytest.mark.parametrize("unit", ["block", "mha", "ffn"])
@pytest.mark.parametrize("own", MODELS)
def test_every_score_equals_the_naive_loop(samples, own, unit):
    decoder = load(f"{SHAPE},{own}")
    result = score(decoder, samples, unit=unit)
    key = "blocks" if unit == "block" else unit
    expected = [naive(to_transformers(apply(decoder, Pruning(**{key: [n]}))), samples) for n in range(4)]
    assert result.baseline == pytest.approx(naive(to_transformers(decoder), samples), rel=1e-4)
    assert result.values == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("own", MODELS)
def test_a_window_is_not_the_whole_context(samples, own):
    shape = f"{SHAPE},{own}"
    wide = load(shape.replace("window=5", f"window={T}"))
    assert perplexity(wide, samples) == pytest.approx(perplexity(load(shape.replace("window=5", "window=0")), samples))
    assert perplexity(load(shape), samples) != pytest.approx(perplexity(wide, samples), rel=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("own", MODELS)
def test_padding_within_a_window_is_neither_seen_nor_scored(samples, own, side):
    decoder = load(f"{SHAPE},{own}")
    mask = torch.ones_like(samples)
    for row, pad in enumerate((0, 3, 9)):
        mask[row, slice(0, pad) if side == "left" else slice(T - pad, T)] = 0
    value = perplexity(decoder, samples, attention_mask=mask)
    assert value == pytest.approx(naive(to_transformers(decoder), samples, mask), rel=1e-4)
    other = samples.masked_fill(mask == 0, 7)
    assert perplexity(decoder, other, attention_mask=mask) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 3.0},
        {"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 16,
         "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0]},
    ],
    ids=lambda rope: rope["rope_type"],
)  # fmt: skip
def test_samples_beyond_the_original_context_have_the_frequencies_of_their_length(samples, rope):
    positions = 16 if rope["rope_type"] == "dynamic" else 32
    config = LlamaConfig(
        hidden_size=48, intermediate_size=71, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
        vocab_size=131, max_position_embeddings=positions, rope_parameters={"rope_theta": 10000.0, **rope},
        initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    result = score(model, samples)
    assert result.baseline == pytest.approx(naive(model, samples), rel=1e-4)
    expected = [naive(to_transformers(apply(load(model), Pruning(blocks=[n]))), samples) for n in range(3)]
    assert result.values == pytest.approx(expected, rel=1e-4)
    alone = replace(load(model), rope=replace(load(model).rope, limit=None))
    assert perplexity(alone, samples) != pytest.approx(result.baseline, rel=1e-3)
