"""Decoders that no configuration describes, as transformers models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pyprune.models import FFN, Linear, load, to_transformers
from tests.judge import assert_as_near_as, assert_no_worse_than_torch


def run(model, ids):
    with torch.no_grad():
        return model(ids).logits


def zeroed(model, layer, half):
    """The model with one half's output projection zero: it adds nothing."""
    projection = {"mha": "self_attn.o_proj", "ffn": "mlp.down_proj"}[half]
    with torch.no_grad():
        model.get_parameter(f"model.layers.{layer}.{projection}.weight").zero_()
    return model


@pytest.mark.parametrize(("layer", "half"), [(0, "mha"), (1, "mha"), (2, "mha"), (0, "ffn"), (2, "ffn")])
def test_missing_half_adds_nothing(llama, ids, layer, half):
    decoder = load(llama())
    blocks = [replace(b, **{half: None}) if b.index == layer else b for b in decoder.blocks]
    ours = to_transformers(replace(decoder, blocks=tuple(blocks)))
    expected = run(zeroed(llama(), layer, half), ids)
    assert torch.equal(run(ours, ids), expected)
    assert not torch.equal(expected, run(llama(), ids))


@pytest.mark.parametrize(("gone", "entries"), [({0}, [0, 2]), ({0, 1}, [0]), ({1}, [0, 1]), ({2}, [0, 1])], ids=str)
def test_generation_with_a_cache_equals_generation_without_where_attention_is_missing(llama, ids, gone, entries):
    decoder = load(llama(eos_token_id=None))
    blocks = tuple(replace(b, mha=None) if b.index in gone else b for b in decoder.blocks)
    model = to_transformers(replace(decoder, blocks=blocks))
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    cached = model.generate(ids, use_cache=True, **options)
    assert cached.shape == (2, 20)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
    attending = [layer.self_attn.layer_idx for layer in model.model.layers if hasattr(layer.self_attn, "layer_idx")]
    assert attending == entries  # the first one is what transformers asks for the length


def test_widths_that_differ_between_blocks(llama, ids):
    """A neuron whose down column is zero adds nothing, so a narrower FFN equals one with zero columns."""
    decoder, reference = load(llama()), llama()
    ffn = decoder.blocks[1].ffn
    narrow = FFN(
        ffn.norm, Linear(ffn.gate.weight[:11]), Linear(ffn.up.weight[:11]), Linear(ffn.down.weight[:, :11])
    )  # fmt: skip
    blocks = (decoder.blocks[0], replace(decoder.blocks[1], ffn=narrow), decoder.blocks[2])
    with torch.no_grad():
        reference.model.layers[1].mlp.down_proj.weight[:, 11:] = 0
    ours = run(to_transformers(replace(decoder, blocks=blocks)), ids)
    assert_as_near_as(ours, reference, lambda model: run(model, ids))


def test_heads_that_differ_between_blocks(llama, ids):
    decoder, reference = load(llama()), llama()
    mha = decoder.blocks[2].mha
    fewer = replace(
        mha, heads=3, kv_heads=1, q=Linear(mha.q.weight[:24]), k=Linear(mha.k.weight[:8]), v=Linear(mha.v.weight[:8]),
        o=Linear(mha.o.weight[:, :24]),
    )  # fmt: skip
    with torch.no_grad():
        reference.model.layers[2].self_attn.o_proj.weight[:, 24:] = 0
    blocks = (*decoder.blocks[:2], replace(decoder.blocks[2], mha=fewer))
    ours = run(to_transformers(replace(decoder, blocks=blocks)), ids)
    assert_as_near_as(ours, reference, lambda model: run(model, ids))


def test_biases_on_single_projections(llama, ids):
    decoder, reference = load(llama()), llama(mlp_bias=True)
    bias = reference.model.layers[1].mlp.down_proj.bias.detach().clone()
    reference.load_state_dict(llama().state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        reference.model.layers[1].mlp.down_proj.bias.copy_(bias)
    ffn = decoder.blocks[1].ffn
    biased = replace(decoder.blocks[1], ffn=replace(ffn, down=Linear(ffn.down.weight, bias)))
    ours = to_transformers(replace(decoder, blocks=(decoder.blocks[0], biased, decoder.blocks[2])))
    assert torch.equal(run(ours, ids), run(reference, ids))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_is_ready_to_run(llama, ids, dtype, attention):
    model = to_transformers(load(llama(dtype=dtype, tie_word_embeddings=True)), attn_implementation=attention)
    assert not model.training
    assert model.dtype == model.config.dtype == dtype
    assert model.config._attn_implementation == attention
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    reference = llama(dtype=dtype, tie_word_embeddings=True)
    reference.set_attn_implementation(attention)
    reference.model.rotary_emb = type(reference.model.rotary_emb)(reference.config)  # a cast of the model rounds it
    assert torch.equal(run(model, ids), run(reference, ids))


def test_decoder_without_blocks_is_embedding_norm_and_head(llama, ids):
    decoder = load(llama())
    ours = run(to_transformers(replace(decoder, blocks=())), ids)

    def formula(dtype: torch.dtype) -> torch.Tensor:
        x = decoder.embedding.to(dtype)[ids]
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + decoder.eps) * decoder.norm.to(dtype)
        return x @ decoder.head.weight.to(dtype).T

    assert_no_worse_than_torch(ours, formula(torch.float32), formula(torch.float64))
