"""Models that accelerate has offloaded: scored as the same models in memory, and left as they are."""

from __future__ import annotations

import copy

import accelerate
import pytest
import torch

import pyprune
from pyprune import InputError
from tests import seeds

IDS = torch.randint(0, 61, (2, 12), generator=seeds.generator(4))


def offloaded(model, how: str, folder):
    model = copy.deepcopy(model)
    if how == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    elif how == "disk":
        accelerate.disk_offload(model, folder, execution_device="cpu")
    else:
        places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
        places |= {f"model.layers.{n}": "disk" for n in range(1, model.config.num_hidden_layers)} | {"lm_head": "disk"}
        model = accelerate.dispatch_model(model, places, offload_dir=folder, main_device="cpu")
    return model


@pytest.mark.parametrize("how", ["cpu", "disk", "some on disk"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_scores_are_those_of_the_model_in_memory(random_model, tmp_path, how: str, family: str):
    model = random_model(family)
    away = offloaded(model, how, tmp_path)
    logits = away(IDS).logits
    meta = {name: parameter.is_meta for name, parameter in away.named_parameters()}
    assert any(meta.values())
    scores = pyprune.score(away, IDS)
    assert scores.values == pytest.approx(pyprune.score(model, IDS).values, rel=1e-6)
    assert {name: parameter.is_meta for name, parameter in away.named_parameters()} == meta
    assert torch.equal(away(IDS).logits, logits)


def test_its_blocks_are_fetched_when_they_are_run(random_model, tmp_path):
    decoder = pyprune.load(offloaded(random_model("llama"), "disk", tmp_path))
    assert decoder.streamed
    assert decoder.sizes().parameters() == pyprune.load(random_model("llama")).parameters()


def test_a_model_without_weights_is_still_refused():
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", num_hidden_layers=1, hidden_size=32))
    with pytest.raises(InputError, match="meta"):
        pyprune.score(model, IDS)
