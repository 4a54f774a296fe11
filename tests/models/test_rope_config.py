"""RoPE as transformers computes it, in both spellings of the configuration."""

from __future__ import annotations

import json

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pyprune.errors import InputError
from pyprune.models import load, to_transformers

KINDS = {
    "default": {},
    "linear": {"factor": 2.5},
    "dynamic": {"factor": 3.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "longrope": {
        "short_factor": [1.0, 1.5, 2.0, 2.5],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
LIMITS = {"dynamic": 128, "longrope": 32}


@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_and_scaling_equal_those_of_the_model(llama, kind):
    model = llama(rope_parameters={"rope_type": kind, "rope_theta": 12345.0, **KINDS[kind]})
    rope = load(model).rope
    assert torch.equal(rope.inv_freq, model.model.rotary_emb.inv_freq)
    assert rope.inv_freq.shape == (4,)
    assert rope.scaling == model.model.rotary_emb.attention_scaling
    assert rope.kind == kind
    assert rope.limit == LIMITS.get(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_differ_so_that_the_test_above_can_fail(llama, kind):
    rope = load(llama(rope_parameters={"rope_type": kind, "rope_theta": 12345.0, **KINDS[kind]})).rope
    plain = load(llama(rope_parameters={"rope_type": "default", "rope_theta": 12345.0})).rope
    # dynamic equals default up to its limit
    assert torch.allclose(rope.inv_freq, plain.inv_freq) is (kind in ("default", "dynamic"))


@pytest.mark.parametrize("kind", KINDS)
def test_tables_equal_transformers_cosine_and_sine(llama, kind):
    model = llama(rope_parameters={"rope_type": kind, "rope_theta": 12345.0, **KINDS[kind]})
    length = 32
    cos, sin = LlamaRotaryEmbedding(model.config)(torch.zeros(1), torch.arange(length)[None])
    ours = load(model).rope.tables(length)
    assert torch.equal(ours[0], cos[0, :, :4])
    assert torch.equal(ours[1], sin[0, :, :4])


@pytest.mark.parametrize("kind", KINDS)
def test_old_spelling_on_disk_means_the_same(saved, llama, ids, kind):
    model = llama(rope_parameters={"rope_type": kind, "rope_theta": 12345.0, **KINDS[kind]})
    directory = saved(model)
    config = json.loads((directory / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **KINDS[kind]}
    (directory / "config.json").write_text(json.dumps(config))
    decoder = load(directory)
    assert torch.equal(decoder.rope.inv_freq, load(model).rope.inv_freq)
    with torch.no_grad():
        assert torch.equal(to_transformers(decoder)(ids).logits, model(ids).logits)


def test_longrope_with_equal_factors_holds_at_every_length(llama):
    factors = [1.0, 1.5, 2.0, 2.5]
    parameters = {**KINDS["longrope"], "short_factor": factors, "long_factor": factors}
    assert load(llama(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **parameters})).rope.limit is None


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rope_type": "spiral", "rope_theta": 1e4}, "rope_type spiral"),
        ({"rope_type": "linear", "rope_theta": 1e4}, "factor"),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0, "partial_rotary_factor": 0.5}, "partial rotation"),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 0.0}, "'factor': 0.0.*not all positive"),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": -2.0}, "'factor': -2.0.*not all positive"),
        ({"rope_type": ["linear"], "rope_theta": 1e4}, "rope_type is"),
        ({"rope_type": "default", "rope_theta": 1e-300}, "not all positive"),
        ({"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "short_factor": [1.0, 2.0, 3.0],
          "long_factor": [1.0] * 4, "original_max_position_embeddings": 32}, "of kind longrope"),
    ],
)  # fmt: skip
def test_parameters_that_cannot_be_honoured_are_refused(saved, parameters, message):
    directory = saved()
    config = json.loads((directory / "config.json").read_text())
    config["rope_parameters"] = parameters
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message) as caught:
        load(directory)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)
