"""Models whose layers differ, accelerated: the halves that are there run on operators, the others add nothing."""

from __future__ import annotations

import pytest
import torch

import pyprune
from pyprune import ops
from pyprune.models import to_transformers
from pyprune.pruning import Pruning, apply
from pyprune.runtime.huggingface.classes import original_class

SHAPE = "shape:hidden=48,blocks=4,heads=6,kv_heads=2,head_dim=10,ffn=71,vocab=131"
PRUNING = Pruning(mha=[0, 2], ffn=[3], kv_groups={1: [0]}, neurons={0: [3], 1: [5, 6, 7]})
FAMILIES = ["family=llama", "family=mistral,window=5", "family=qwen2,window=5,full_blocks=2", "family=qwen3"]
IDS = torch.arange(26).view(2, 13) * 17 % 131


@pytest.fixture(params=FAMILIES)
def model(request):
    return to_transformers(apply(pyprune.load(f"{SHAPE},{request.param}"), PRUNING))


def tokens(model, **options):
    given = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    return model.generate(IDS, attention_mask=torch.ones_like(IDS), **given)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate_gives_the_same_tokens(model, cache):
    options = {} if cache == "dynamic" else {"cache_implementation": "static", "disable_compile": True}
    expected = tokens(model, **options)
    assert torch.equal(tokens(pyprune.accelerate(model), **options), expected)


def test_the_halves_that_are_there_run_on_operators(model, monkeypatch):
    calls = {"norm_qkv_rope": 0, "norm_gate_up": 0, "padded_linear": 0}

    def counting(name, operator):
        def call(*args, **options):
            calls[name] += 1
            return operator(*args, **options)

        return call

    for name in calls:
        monkeypatch.setattr(ops, name, counting(name, getattr(ops, name)))
    with torch.no_grad():
        pyprune.accelerate(model)(IDS)
    assert calls["norm_qkv_rope"] == 2  # blocks 1 and 3
    assert calls["norm_gate_up"] == 3  # blocks 0, 1 and 2
    assert calls["padded_linear"] >= 1  # the head


def test_restore_gives_every_class_back(model):
    before = [type(module) for module in model.modules()]
    pyprune.accelerate(model)
    assert any(original_class(type(module)) is not type(module) for module in model.modules())
    pyprune.restore(model)
    assert [type(module) for module in model.modules()] == before
