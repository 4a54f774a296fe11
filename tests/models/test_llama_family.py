"""A Hugging Face Llama read as a Decoder and built again."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaModel

from pyprune.errors import InputError
from pyprune.models import as_decoder, load, to_transformers
from pyprune.models.names import hf_name
from tests.fresh import run_fresh


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1},
        {"tie_word_embeddings": True},
        {"head_dim": 10},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 14},
        {"num_hidden_layers": 1, "intermediate_size": 1},
    ],
    ids=str,
)
def test_directory_gives_every_tensor_and_the_same_logits(saved, llama, ids, changes):
    original = llama(**changes)
    decoder = load(saved(original))
    state = original.state_dict()
    names = {hf_name(part) for part, _ in decoder.tensors()}
    tied = bool(changes.get("tie_word_embeddings"))
    assert names == set(state) - ({"lm_head.weight"} if tied else set())
    assert all(torch.equal(state[hf_name(part)], tensor) for part, tensor in decoder.tensors())
    assert decoder.tied is tied
    assert torch.equal(logits(to_transformers(decoder), ids), logits(original, ids))


def test_sizes_are_those_of_the_configuration(saved):
    decoder = load(saved(head_dim=10))
    block = decoder.blocks[2]
    assert (block.index, block.mha.heads, block.mha.kv_heads, block.mha.head_dim, block.mha.group) == (2, 6, 2, 10, 3)
    assert (block.ffn.width, decoder.vocab_size, decoder.hidden_size, decoder.max_positions) == (37, 61, 48, 128)
    assert decoder.name == "original"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_of_the_checkpoint_is_kept(saved, dtype):
    assert {t.dtype for _, t in load(saved(dtype=dtype)).tensors()} == {dtype}


@pytest.mark.parametrize("name", ["bf16", "bfloat16", torch.bfloat16])
def test_dtype_asked_for_is_a_plain_cast(saved, llama, name):
    decoder = load(saved(), dtype=name)
    state = llama().state_dict()
    assert all(torch.equal(t, state[hf_name(part)].to(torch.bfloat16)) for part, t in decoder.tensors())


def test_loaded_model_is_shared_and_not_modified(llama, ids):
    model = llama(tie_word_embeddings=True, attention_bias=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    expected = logits(model, ids)
    decoder = load(model)
    again = to_transformers(decoder)
    assert torch.equal(logits(again, ids), expected)
    state = model.state_dict()
    for part, tensor in decoder.tensors():
        assert tensor.data_ptr() == state[hf_name(part)].data_ptr()
        assert tensor.data_ptr() == again.get_parameter(hf_name(part)).data_ptr()
        assert not tensor.requires_grad
    assert decoder.head.weight is decoder.embedding
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert flags == {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def test_loaded_model_in_another_dtype_is_copied(llama):
    model = llama()
    decoder = load(model, dtype="bf16")
    assert decoder.dtype == torch.bfloat16
    assert model.dtype == torch.float32


def test_model_cast_after_loading_keeps_the_dtype_of_its_weights(saved, llama):
    assert load(llama().to(torch.bfloat16)).dtype == torch.bfloat16


def test_model_that_transformers_read_from_gguf_is_accepted(write_gguf):
    from transformers import AutoModelForCausalLM

    path = write_gguf("Q8_0")
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    theirs, ours = load(model), load(path)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(theirs.tensors(), ours.tensors(), strict=True))


def test_a_tied_configuration_with_two_different_tables_is_untied(saved, llama, ids):
    """As transformers does: the file, not the flag, tells."""
    directory = saved()
    config = (directory / "config.json").read_text()
    (directory / "config.json").write_text(
        config.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
    )
    decoder = load(directory)
    assert not decoder.tied
    assert not decoder.config["tie_word_embeddings"]
    assert torch.equal(logits(to_transformers(decoder), ids), logits(llama(), ids))


def test_model_without_a_head_is_refused(llama):
    with pytest.raises(InputError, match=r"LlamaModel: tensor model\.embed_tokens\.weight is missing"):
        load(LlamaModel(llama().config))


def test_module_that_is_no_model_is_refused():
    with pytest.raises(InputError, match="Linear: not a transformers PreTrainedModel"):
        load(torch.nn.Linear(2, 2))


def test_decoder_passes_through(llama):
    decoder = load(llama())
    assert load(decoder).embedding is decoder.embedding
    assert load(decoder, dtype="fp16").dtype == torch.float16


def test_as_decoder_leaves_weights_where_they_lie(llama):
    decoder = load(llama())
    assert as_decoder(decoder) is decoder
    elsewhere = decoder.map(lambda tensor: tensor.to("meta"))
    assert as_decoder(elsewhere).device.type == "meta"
    model = llama()
    assert as_decoder(model).embedding.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert as_decoder("shape:tiny").name == "shape:tiny"


@pytest.mark.slow
def test_import_does_not_import_transformers(package_environment):
    code = "import sys, pyprune.models; pyprune.models.load('shape:tiny'); sys.exit('transformers' in sys.modules)"
    run_fresh(code, package_environment)
