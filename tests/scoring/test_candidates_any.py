"""Candidates and measures on families that run through transformers' own layers: a candidate changes whole blocks."""

from __future__ import annotations

import pytest
import torch
from naive import measures, outputs
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from pyprune import InputError, Pruning, score
from pyprune.scoring import WithResidual
from tests import seeds

S, T = 3, 11


def gemma2():
    torch.manual_seed(3)
    sizes = dict(vocab_size=97, hidden_size=24, intermediate_size=40, num_hidden_layers=3)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=6, query_pre_attn_scalar=6, sliding_window=5)
    return Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, final_logit_softcapping=3.0)).eval()


def gpt2():
    torch.manual_seed(4)
    return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=32, n_embd=24, n_layer=3, n_head=4)).eval()


def layers_of(model):
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


@pytest.mark.parametrize("build", [gemma2, gpt2])
def test_blocks_left_out_and_replaced_equal_their_own_forward(build):
    model, ids = build(), torch.randint(0, 97, (S, T), generator=seeds.generator(61))
    torch.manual_seed(5)
    module = torch.nn.Sequential(torch.nn.LayerNorm(24), torch.nn.Linear(24, 24)).requires_grad_(False)
    candidates = [Pruning(blocks=[1]), {(0, "block"): module}, {(2, "block"): WithResidual(module), (1, "block"): None}]
    names = ["ppl", "kl", "cosine", "top1", "finercut"]
    result = score(model, ids, candidates=candidates, measure=names)
    original = outputs(model, ids)
    behind = [{1: lambda x: x}, {0: lambda x: x + module(x)}, {2: module, 1: lambda x: x}]
    for place, changes in enumerate(behind):
        layers = layers_of(model)
        for index, function in changes.items():
            layers[index].forward = lambda x, *_, function=function, **__: function(x)
        expected = measures(outputs(model, ids), original, ids)
        for index in changes:
            del layers[index].forward
        for name in names:
            assert result.measures[name].values[place] == pytest.approx(expected[name], rel=2e-4, abs=1e-6), name


def test_what_only_our_families_can_is_refused():
    model, ids = gpt2(), torch.randint(0, 97, (S, T), generator=seeds.generator(62))
    for candidate, message in (
        (Pruning(neurons={0: [1]}), "neurons of .* cannot be narrowed"),
        (Pruning(mha=[0]), "place .*; a pair of a block and one of block is expected"),
        ({(0, "ffn"): None}, "place"),
        ({(3, "block"): None}, "block 3, which"),
    ):
        with pytest.raises(InputError, match=message):
            score(model, ids, candidates=[candidate])
