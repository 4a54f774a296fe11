"""Random models: reproducible, finite, and not degenerate."""

from __future__ import annotations

import os
import re

import pytest
import torch

from pyprune.errors import InputError
from pyprune.models import load, shapes, to_transformers
from pyprune.models.load import load_sizes
from pyprune.models.shapes import SHAPES, parse_shape, random_uniform, random_uniform_there

SMALL = "shape:hidden=64,blocks=4,heads=4,kv_heads=2,head_dim=16,ffn=171,vocab=257"


def test_explicit_sizes():
    decoder = load(SMALL + ",tied=1")
    block = decoder.blocks[3]
    assert (decoder.hidden_size, len(decoder.blocks), decoder.vocab_size, decoder.tied) == (64, 4, 257, True)
    assert (block.mha.heads, block.mha.kv_heads, block.mha.head_dim, block.ffn.width) == (4, 2, 16, 171)
    assert decoder.dtype == torch.float32
    assert decoder.tokenizer_source is None


@pytest.mark.parametrize(
    ("name", "billions", "blocks"), [("llama-7b", 6.738, 32), ("vicuna-13b", 13.016, 40), ("llama-1b", 1.236, 16)]
)
def test_named_shapes_have_the_published_number_of_parameters(name, billions, blocks):
    shape = SHAPES[name]
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    block = attention + 3 * shape.hidden * shape.ffn + 2 * shape.hidden
    tables = shape.vocab * shape.hidden * (1 if shape.tied else 2)
    assert (shape.blocks * block + tables + shape.hidden) / 1e9 == pytest.approx(billions, abs=1e-3)
    assert shape.blocks == blocks
    assert shape.dtype == torch.bfloat16


def test_same_values_whatever_the_number_of_threads(monkeypatch):
    shape = (1500, 1201)  # more than one chunk, the last one odd
    several = random_uniform("x", shape, 0.5, torch.float32)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert torch.equal(random_uniform("x", shape, 0.5, torch.float32), several)


def test_same_values_every_time_and_other_values_for_other_tensors():
    first, second = dict(load("shape:tiny").tensors()), dict(load("shape:tiny").tensors())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["blocks.0.mha.q.weight"], first["blocks.1.mha.q.weight"])
    assert not torch.equal(first["blocks.0.ffn.gate.weight"], first["blocks.0.ffn.up.weight"])


def test_bfloat16_values_are_the_float32_ones_rounded():
    full, half = load("shape:tiny"), load("shape:tiny", dtype="bf16")
    assert all(torch.equal(a.to(torch.bfloat16), b) for (_, a), (_, b) in zip(full.tensors(), half.tensors()))  # noqa: B905


def test_values_drawn_on_a_device_repeat_and_have_the_stated_deviation():
    cpu = torch.device("cpu")
    values = random_uniform_there("x", (1 << 10, 1 << 9), 0.25, torch.bfloat16, cpu)
    assert torch.equal(values, random_uniform_there("x", (1 << 10, 1 << 9), 0.25, torch.bfloat16, cpu))
    assert not torch.equal(values, random_uniform_there("y", (1 << 10, 1 << 9), 0.25, torch.bfloat16, cpu))
    assert float(values.float().std()) == pytest.approx(0.25, rel=0.01)
    assert abs(float(values.float().mean())) < 0.002


def test_values_have_the_stated_deviation_and_do_not_repeat():
    values = random_uniform("x", (1 << 12, 1 << 9), 0.25, torch.float32)
    assert values.std().item() == pytest.approx(0.25, rel=0.01)
    assert abs(values.mean().item()) < 1e-3
    chunks = values.view(2, -1)
    assert not torch.equal(chunks[0], chunks[1])


@pytest.mark.parametrize("spec", [SMALL, SMALL + ",tied=1", SMALL.replace("blocks=4", "blocks=24")])
def test_logits_are_neither_flat_nor_extreme(spec):
    decoder = load(spec)
    ids = torch.arange(2 * 64).view(2, 64) % 257
    with torch.no_grad():
        states = to_transformers(decoder)(ids, output_hidden_states=True)
    assert 0.3 < states.logits.std() < 10
    assert all(0.01 < state.std() < 20 for state in states.hidden_states)
    probabilities = states.logits.softmax(-1)
    assert 1.5 / 257 < probabilities.amax(-1).mean() < 0.9


def test_each_block_matters():
    """Removing any block moves the logits well beyond rounding."""
    from dataclasses import replace

    decoder = load("shape:tiny")
    ids = torch.arange(32)[None]
    with torch.no_grad():
        whole = to_transformers(decoder)(ids).logits
        for block in decoder.blocks:
            rest = tuple(other for other in decoder.blocks if other is not block)
            assert (to_transformers(replace(decoder, blocks=rest))(ids).logits - whole).std() > 0.05


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shape:llama-9b", "'llama-9b' is not understood; accepted: llama-7b"),
        ("shape:", "'' is not understood"),
        ("shape:hidden=64", "blocks is missing"),
        (SMALL + ",depth=3", "'depth=3' is not understood"),
        (SMALL + ",ffn=3", "'ffn=3' is not understood"),
        (SMALL + ",tied=2", "tied=2"),
        (SMALL + ",family=gemma", "family=gemma; accepted: llama, mistral, qwen2, qwen3"),
        (SMALL + ",family=", "'family=' is not understood"),
        (SMALL + ",window=-1", "'window=-1' is not understood"),
        (SMALL + ",window=8", "a window of 8 positions: a llama has none"),
        (SMALL + ",family=mistral,window=8,full_blocks=1", "a mistral has one for all"),
        (SMALL + ",family=qwen2,window=8,full_blocks=5", "full_blocks=5; up to 4"),
        ("shape:tiny,llama-1b", "'llama-1b' is not understood"),
        ("shape:tiny,ffn=3,ffn=4", "'ffn=4' is not understood"),
        (SMALL.replace("ffn=171", "ffn=-1"), "'ffn=-1'"),
        (SMALL.replace("ffn=171", "ffn=0"), "ffn=0 is too small; sizes from 1"),
        (SMALL.replace("blocks=4", "blocks=0"), "blocks=0 is too small"),
        (SMALL.replace("vocab=257", "vocab=00"), "vocab=00 is too small"),
        (SMALL.replace("hidden=64", "hidden=" + "9" * 5000), "is not understood"),
        (SMALL.replace("kv_heads=2", "kv_heads=3"), "num_attention_heads 4 is not a multiple"),
        (SMALL.replace("head_dim=16", "head_dim=15"), "head_dim 15 is odd"),
    ],
)
def test_other_specifications_are_refused(spec, message):
    with pytest.raises(InputError) as caught:
        load(spec)
    assert message in str(caught.value)


@pytest.mark.parametrize("size", ["hidden=9999999999", "vocab=999999999999999999", "blocks=999999999"])
def test_more_weights_than_memory_are_refused_before_any_is_made(monkeypatch, size):
    monkeypatch.setattr(shapes, "_random", None)
    key = size.partition("=")[0]
    spec = re.sub(rf"{key}=\d+", size, SMALL)
    needed = parse_shape(spec).parameters * 4
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with pytest.raises(InputError, match=re.escape(f"{spec}: {needed} bytes")) as caught:
        load(spec)
    assert f"cpu has {there} bytes" in str(caught.value)


@pytest.mark.parametrize(
    "size", ["hidden=1048577", "blocks=10001", "heads=16385", "head_dim=99999999", "ffn=16777217", "vocab=9" + "0" * 17]
)
def test_sizes_beyond_any_model_are_refused_where_nothing_is_made(size):
    key, _, value = size.partition("=")
    spec = re.sub(rf"\b{key}=\d+", size, SMALL)
    with pytest.raises(InputError, match=f"{key}={value} is too large; sizes up to [0-9]+ are expected"):
        load_sizes(spec)


def test_memory_needed_is_that_of_the_dtype(monkeypatch):
    decoder = load("shape:tiny")
    assert parse_shape("shape:tiny").parameters == decoder.parameters()
    assert parse_shape(SMALL + ",tied=1").parameters == load(SMALL + ",tied=1").parameters()
    pages = {"SC_PHYS_PAGES": decoder.parameters() * 2, "SC_PAGE_SIZE": 1}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert load("shape:tiny", dtype="bf16").parameters() == decoder.parameters()
    with pytest.raises(InputError, match=f"{decoder.parameters() * 4} bytes"):
        load("shape:tiny")


def test_heads_that_do_not_divide_the_hidden_size_are_allowed():
    decoder = load(SMALL.replace("heads=4,kv_heads=2", "heads=3,kv_heads=1"))
    assert decoder.config["model_type"] == "mistral"
    assert to_transformers(decoder)(torch.tensor([[1, 2]])).logits.isfinite().all()


FAMILY_PARTS = {
    "llama": set(),
    "mistral": set(),
    "qwen2": {"q.bias", "k.bias", "v.bias"},
    "qwen3": {"q_norm", "k_norm"},
}


@pytest.mark.parametrize("family", FAMILY_PARTS)
def test_every_family_has_a_random_model(family):
    decoder = load(f"{SMALL},family={family}")
    tensors = dict(decoder.tensors())
    extra = {name.removeprefix("blocks.2.mha.") for name in tensors if name.startswith("blocks.2.mha.")}
    extra -= {"norm", "q.weight", "k.weight", "v.weight", "o.weight"}
    assert decoder.config["model_type"] == family
    assert extra == FAMILY_PARTS[family]
    assert all(tensors[f"blocks.2.mha.{name}"].std() > 0.01 for name in extra)
    assert parse_shape(f"{SMALL},family={family}").parameters == decoder.parameters()
    logits = to_transformers(decoder)(torch.arange(32)[None]).logits
    assert logits.isfinite().all()
    assert not torch.equal(logits, to_transformers(load(SMALL))(torch.arange(32)[None]).logits) or not extra


def test_a_name_takes_other_sizes_and_families_behind_it():
    decoder = load("shape:tiny,family=qwen2,window=9,full_blocks=1,blocks=3,tied=1")
    assert [block.mha.window for block in decoder.blocks] == [0, 9, 9]
    assert (decoder.config["model_type"], decoder.tied, decoder.vocab_size) == ("qwen2", True, 257)
    assert [block.mha.window for block in load("shape:tiny,family=mistral,window=9").blocks] == [9] * 4
    assert load("shape:tiny,ffn=100").blocks[0].ffn.width == 100


def test_sizes_parse_without_order():
    assert parse_shape("shape:vocab=9,ffn=1,head_dim=2,kv_heads=1,heads=1,blocks=1,hidden=2").vocab == 9
