"""Models of any family: what is refused and why, and depth-pruned checkpoints that plain transformers loads."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from pyprune import Decoder, InputError, Pruning, TransformersDecoder, apply, load, load_any
from tests.families.models import FAMILIES, ids, naive_perplexity, random_model, without_layers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_depth_pruned_checkpoint_is_a_plain_one(family, tmp_path):
    model, input_ids = random_model(family), ids()
    decoder = load_any(model)
    smaller = apply(decoder, Pruning(blocks=[1]))
    smaller.save(tmp_path / "smaller")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "smaller").eval()

    assert type(plain) is type(model)
    with torch.no_grad():
        assert torch.equal(plain(input_ids).logits, smaller.model(input_ids).logits)
    with without_layers(model, 1):
        expected = naive_perplexity(model, input_ids)
    assert abs(naive_perplexity(plain, input_ids) / expected - 1) < 1e-5
    # With a cache, whose layers are numbered anew, and without.
    cached, whole = (
        plain.generate(input_ids, max_new_tokens=6, do_sample=False, use_cache=use_cache, eos_token_id=None)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, whole)
    assert cached.shape[1] == input_ids.shape[1] + 6

    again = load_any(tmp_path / "smaller")
    assert [block.index for block in again.blocks] == [0, 2, 3]
    assert (again.original_blocks, again.pruning.blocks) == (4, (1,))
    twice = apply(again, Pruning(blocks=[3]))
    with without_layers(model, 1, 3):
        expected = naive_perplexity(model, input_ids)
    assert abs(naive_perplexity(twice.model, input_ids) / expected - 1) < 1e-5


def test_tensors_are_shared_and_the_original_stays():
    model = random_model("gemma3_text")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = model.config.to_dict()
    smaller = apply(load_any(model), Pruning(blocks=[0, 1]))
    assert smaller.model.config.layer_types == ["sliding_attention", "sliding_attention"]
    own = {tensor.data_ptr() for tensor in model.parameters()}
    assert {tensor.data_ptr() for tensor in smaller.model.parameters()} <= own
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.to_dict() == settings
    assert len(model.model.layers) == 4


def test_layer_indices_and_lists_by_layer_are_renumbered():
    smaller = apply(load_any(random_model("llama4_text")), Pruning(blocks=[0]))
    assert smaller.model.config.moe_layers == [0, 2]
    assert smaller.model.config.no_rope_layers == [1, 0, 1]
    assert [layer.self_attn.layer_idx for layer in smaller.model.model.layers] == [0, 1, 2]
    smaller = apply(load_any(random_model("qwen3_moe")), Pruning(blocks=[1]))
    assert smaller.model.config.mlp_only_layers == [0, 1]


def test_what_transformers_cannot_express_is_refused():
    config = GPT2Config(
        n_embd=48, n_layer=4, n_head=4, n_positions=64, vocab_size=67, scale_attn_by_inverse_layer_idx=True
    )
    model = GPT2LMHeadModel(config).eval()
    with pytest.raises(InputError, match=r"cannot express it without layers \[1\] \(layer 2 would be another as layer"):
        apply(load_any(model), Pruning(blocks=[1]))
    apply(load_any(model), Pruning(blocks=[3]))  # the others keep their numbers


def test_our_families_are_loaded_as_decoders_and_others_run_themselves(tmp_path):
    assert isinstance(load_any("shape:hidden=24,blocks=2,heads=6,kv_heads=2,head_dim=6,ffn=17,vocab=53"), Decoder)
    assert isinstance(load_any(random_model("llama")), Decoder)
    model = random_model("olmo2", torch.bfloat16)
    model.save_pretrained(tmp_path / "olmo2")
    decoder = load_any(tmp_path / "olmo2")
    assert isinstance(decoder, TransformersDecoder)
    assert (decoder.name, decoder.dtype, decoder.vocab_size) == ("olmo2", torch.bfloat16, 67)
    assert load_any(tmp_path / "olmo2", dtype="float32").dtype == torch.float32
    assert load_any(decoder) is decoder
    with pytest.raises(InputError, match="model_type olmo2 is not supported"):
        load(tmp_path / "olmo2")
    with pytest.raises(InputError, match="cannot be streamed"):
        load_any(tmp_path / "olmo2", stream=True)
    (tmp_path / "olmo2" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="transformers cannot load it as a causal model"):
        load_any(tmp_path / "olmo2")


def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    random_model("olmo2").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.2.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"missing keys model.layers.2.mlp.down_proj.weight"):
        load_any(tmp_path)


def test_a_loaded_model_has_the_record_of_the_directory_it_came_from(tmp_path):
    apply(load_any(random_model("olmo2")), Pruning(blocks=[1])).save(tmp_path / "smaller")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "smaller").eval()
    decoder = load_any(model)
    assert [block.index for block in decoder.blocks] == [0, 2, 3]
    assert (decoder.original_blocks, decoder.pruning.blocks) == (4, (1,))
    with pytest.warns(UserWarning, match="those of the present model"):
        assert [block.index for block in load_any(apply(decoder, Pruning(blocks=[3])).model).blocks] == [0, 1]


def test_a_record_of_another_checkpoint_is_refused(tmp_path):
    apply(load_any(random_model("olmo2")), Pruning(blocks=[1])).save(tmp_path / "smaller")
    record = json.loads((tmp_path / "smaller" / "pruning.json").read_text())
    (tmp_path / "smaller" / "pruning.json").write_text(json.dumps({**record, "blocks": [1, 2]}))
    with pytest.raises(InputError, match="removes 2 blocks, but the checkpoint holds 3"):
        load_any(tmp_path / "smaller")


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        (Pruning(mha=[1]), "only whole blocks can be removed"),
        (Pruning(neurons={1: [0]}), "only whole blocks can be removed"),
        (Pruning(blocks=[4]), "0 to 3 of .* are accepted"),
        (Pruning(blocks=[0, 1, 2, 3]), "all 4 blocks are removed"),
    ],
)
def test_other_prunings_are_refused(pruning, message):
    with pytest.raises(InputError, match=message):
        apply(load_any(random_model("phi3")), pruning)


def test_a_state_space_model_passes():
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=67, hidden_size=32, num_hidden_layers=3, state_size=4)).eval()
    decoder = load_any(model)
    assert (decoder.structure.layers_name, len(decoder.blocks)) == ("backbone.layers", 3)
    assert len(apply(decoder, Pruning(blocks=[0])).blocks) == 2


def refused(model, message):
    with pytest.raises(InputError, match=message) as error:
        load_any(model)
    assert "\n" not in str(error.value)


def test_an_encoder_decoder_is_refused():
    config = T5Config(vocab_size=67, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    refused(T5ForConditionalGeneration(config).eval(), "T5ForConditionalGeneration: an encoder-decoder")


def test_a_model_that_sees_later_tokens_is_refused():
    config = BertConfig(vocab_size=67, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    refused(BertLMHeadModel(config).eval(), "its logits at a token depend on later tokens")


def test_a_model_in_training_mode_is_refused():
    refused(random_model("phi3").train(), "in training mode; model.eval")


def test_a_model_without_a_head_is_refused():
    refused(random_model("phi3").model, "no logits for each token")


def test_a_module_that_is_no_model_is_refused():
    refused(nn.Linear(2, 2), "a PreTrainedModel of transformers is expected")


def test_weights_that_are_not_finite_are_refused():
    model = random_model("phi3")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    refused(model, "its logits are not finite")


def test_a_forward_that_does_more_than_its_layers_is_refused():
    model = random_model("phi3")
    norm = model.model.norm
    own = model.model.forward

    def forward(*args, **kwargs):
        # The state before the final norm is changed by the model, and not by its layers.
        hook = norm.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 1.5 + 1,))
        try:
            return own(*args, **kwargs)
        finally:
            hook.remove()

    model.model.forward = forward
    refused(model, "does more than|is more than")


def test_a_layer_that_shares_what_it_computes_is_refused():
    model = random_model("phi3")
    kept = {}
    first, last = model.model.layers[0], model.model.layers[3]
    own_first, own_last = first.forward, last.forward

    def keep(hidden_states, *args, **kwargs):
        kept["state"] = own_first(hidden_states, *args, **kwargs)
        return kept["state"]

    def use(hidden_states, *args, **kwargs):
        return own_last(hidden_states, *args, **kwargs) + kept["state"]

    first.forward, last.forward = keep, use
    refused(model, "run layer by layer it gives other logits")
