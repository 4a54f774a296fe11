"""Attention in training: a model whose attention is ours computes what it computed with torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.integrations import sdpa_attention

import pyprune
from pyprune.models.transformers_model import to_transformers
from pyprune.retraining import attention
from pyprune.retraining.attention import causal_attention, fuse_attention
from tests import seeds
from tests.library import needs_library

FAMILIES = ["llama", "qwen2", "qwen3"]
SIZES = "shape:hidden=24,blocks=2,heads=4,kv_heads=2,head_dim=6,ffn=31,vocab=61"


def test_its_gradients_in_float64():
    generator = seeds.generator(4)
    leaves = [
        torch.randn(2, heads, 5, 3, dtype=torch.float64, generator=generator).requires_grad_() for heads in (4, 2, 2)
    ]
    assert torch.autograd.gradcheck(lambda q, k, v: causal_attention(q, k, v, 0.6), leaves)


def losses_and_gradients(model, ids, mask=None):
    model.zero_grad()
    loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
    loss.backward()
    return torch.cat([loss.detach()[None], *(parameter.grad.flatten() for parameter in model.parameters())])


@needs_library
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_the_same(family, monkeypatch):
    plain = to_transformers(pyprune.load(f"{SIZES},family={family}")).train()
    ours = copy.deepcopy(plain)
    assert fuse_attention(ours)
    assert plain.config._attn_implementation == "sdpa"
    ids = torch.randint(0, 61, (3, 40), generator=seeds.generator(6))
    calls = []
    by_torch, by_us = sdpa_attention.sdpa_attention_forward, attention.causal_attention
    monkeypatch.setattr(attention, "causal_attention", lambda *args: (calls.append(args), by_us(*args))[1])
    expected, result = losses_and_gradients(plain, ids), losses_and_gradients(ours, ids)
    assert len(calls) == 2
    assert (result - expected).abs().max() <= 100 * torch.finfo(torch.float32).eps * expected.abs().max()
    assert sdpa_attention.sdpa_attention_forward is by_torch

    mask = torch.ones_like(ids)  # with padding torch's attention runs, to the bit
    mask[0, 30:] = 0
    assert torch.equal(losses_and_gradients(ours, ids, mask), losses_and_gradients(plain, ids, mask))
    assert len(calls) == 2


def test_a_model_with_another_attention_keeps_it():
    model = to_transformers(pyprune.load(SIZES), attn_implementation="eager")
    assert not fuse_attention(model)
    assert model.config._attn_implementation == "eager"
