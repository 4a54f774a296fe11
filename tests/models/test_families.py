"""Mistral, Qwen2 and Qwen3 against transformers: what they compute, and what of them can be saved."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from pyprune import ops
from pyprune.errors import InputError
from pyprune.models import as_decoder, load, to_transformers
from pyprune.models.load import load_sizes
from pyprune.pruning import Pruning, apply, pad
from pyprune.runtime.sequence import embed, run_block
from tests.judge import assert_as_near_as

WINDOW = 5
MIXED = {
    "use_sliding_window": True,
    "sliding_window": WINDOW,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}
MODELS = {
    "llama": ("llama", {"attention_bias": True}, [0, 0, 0]),
    "mistral": ("mistral", {"sliding_window": None}, [0, 0, 0]),
    "mistral with a window": ("mistral", {"sliding_window": WINDOW}, [WINDOW] * 3),
    "qwen2": ("qwen2", {}, [0, 0, 0]),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}, [0, 0, 0]),
    "qwen2 with windows": ("qwen2", MIXED, [WINDOW, 0, WINDOW, 0]),
    "qwen2 with late windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
        [0, 0, WINDOW],
    ),
    "qwen2 whose windows are switched off": ("qwen2", {"sliding_window": 3, "max_window_layers": 0}, [0, 0, 0]),
    "qwen3": ("qwen3", {}, [0, 0, 0]),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}, [0, 0, 0]),
    "qwen3 with windows": ("qwen3", MIXED, [WINDOW, 0, WINDOW, 0]),
}
FAMILIES = ["mistral with a window", "qwen2 with windows", "qwen3 with windows"]
IDS = torch.arange(38).view(2, 19) * 17 % 61


@pytest.fixture
def made(random_model):
    """A model of MODELS."""

    def make(name, **changes):
        model_type, own, _ = MODELS[name]
        model = random_model(model_type, **{**own, **changes})
        with torch.no_grad():  # softer attention, which does not amplify rounding as that of random weights does
            for layer in model.model.layers:
                for tensor in layer.self_attn.q_proj.parameters():
                    tensor.mul_(0.2)
        return model

    return make


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def our_logits(decoder, ids=IDS):
    x = embed(decoder, ids)
    cos, sin = decoder.rope.tables(ids.shape[1], prompt=ids.shape[1])
    for block in decoder.blocks:
        x = run_block(block, x, cos, sin, decoder.eps)
    return ops.norm_head(x, decoder.norm, decoder.eps, decoder.head.weight, decoder.head.bias)


def windows(decoder):
    return [block.mha.window for block in decoder.blocks]


def plain(directory):
    return AutoModelForCausalLM.from_pretrained(directory)


def same_tensors(one, other):
    ours, theirs = dict(one.tensors()), dict(other.tensors())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers(made, name):
    model = made(name)
    decoder = load(model)
    assert windows(decoder) == MODELS[name][2]
    assert_as_near_as(our_logits(decoder), model, logits)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_window_off_by_one_gives_other_logits(made, name, change):
    decoder = load(made(name))
    blocks = tuple(
        replace(block, mha=replace(block.mha, window=block.mha.window and block.mha.window + change))
        for block in decoder.blocks
    )
    expected = our_logits(decoder)
    assert float((our_logits(replace(decoder, blocks=blocks)) - expected).std()) > 0.05 * float(expected.std())


@pytest.mark.parametrize(("name", "part"), [("qwen2", "q.bias"), ("qwen2", "k.bias"), ("qwen2", "v.bias"),
                                            ("qwen3", "q_norm"), ("qwen3", "k_norm"),
                                            ("qwen3 with biases", "o.bias")])  # fmt: skip
def test_biases_and_head_norms_are_read_and_matter(made, name, part):
    decoder = load(made(name))
    assert f"blocks.1.mha.{part}" in dict(decoder.tensors())
    model = made(name)
    neutral = torch.ones_like if part.endswith("norm") else torch.zeros_like
    with torch.no_grad():
        tensor = dict(load(model).tensors())[f"blocks.1.mha.{part}"]
        tensor.copy_(neutral(tensor))
    expected = our_logits(decoder)
    assert float((our_logits(load(model)) - expected).std()) > 0.01 * float(expected.std())


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_shares_its_weights_and_stays_as_it_is(made, name):
    model = made(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    decoder = as_decoder(model)
    addresses = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert {tensor.data_ptr() for _, tensor in decoder.tensors()} == addresses
    assert torch.equal(logits(to_transformers(decoder)), logits(model))
    assert {tensor.data_ptr() for tensor in to_transformers(decoder).state_dict().values()} == addresses
    assert model.config.to_dict() == config
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_is_the_original_bit_for_bit(made, tmp_path, name, dtype):
    model = made(name, dtype=dtype)
    model.save_pretrained(tmp_path / "theirs")
    decoder = load(tmp_path / "theirs")
    decoder.save(tmp_path / "ours")
    again = load(tmp_path / "ours")
    assert same_tensors(decoder, load(model))
    assert same_tensors(again, decoder)
    assert windows(again) == MODELS[name][2]
    assert torch.equal(logits(plain(tmp_path / "ours")), logits(plain(tmp_path / "theirs")))
    assert plain(tmp_path / "ours").config.model_type == model.config.model_type


@pytest.mark.parametrize("name", MODELS)
def test_sizes_are_known_without_weights(made, tmp_path, name):
    made(name).save_pretrained(tmp_path / "theirs")
    sizes, decoder = load_sizes(tmp_path / "theirs"), load(tmp_path / "theirs")
    assert [(n, t.shape) for n, t in sizes.tensors()] == [(n, t.shape) for n, t in decoder.tensors()]
    assert windows(sizes) == windows(decoder)


@pytest.mark.parametrize("gone", [{0}, {1}, {2}, {1, 2}, {0, 2}], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_depth_pruned_models_keep_the_windows_of_their_blocks(made, tmp_path, name, gone):
    model = made(name)
    count = len(model.model.layers)
    stay = [index for index in range(count) if index not in gone]
    pruned = apply(load(model), Pruning(blocks=gone))
    pruned.save(tmp_path / "saved")
    reference = made(name)
    reference.model.layers = torch.nn.ModuleList(reference.model.layers[index] for index in stay)
    for place, layer in enumerate(reference.model.layers):
        layer.self_attn.layer_idx = place
    reference.config.num_hidden_layers = len(stay)
    if hasattr(reference.config, "layer_types"):
        reference.config.layer_types = [reference.config.layer_types[index] for index in stay]
    expected = logits(reference)
    read = plain(tmp_path / "saved")
    assert torch.equal(logits(read), expected)
    assert torch.equal(logits(to_transformers(pruned)), expected)
    again = load(tmp_path / "saved")
    assert [block.index for block in again.blocks] == stay
    assert windows(again) == [MODELS[name][2][index] for index in stay]
    assert again.config == pruned.config
    twice = apply(again, Pruning(blocks=[stay[0]])) if len(stay) > 1 else again
    assert windows(twice) == windows(again)[-len(twice.blocks) :]
    config = json.loads((tmp_path / "saved/config.json").read_text())
    if name.startswith("qwen"):
        assert config["layer_types"] == [MIXED["layer_types"][index] for index in stay]
        assert config["use_sliding_window"] is (WINDOW in windows(again))


@pytest.mark.parametrize("name", [*FAMILIES, "llama", "qwen2, tied", "qwen3 with biases"])
def test_width_pruned_models_lose_the_rows_of_biases_too(made, tmp_path, name):
    """Heads and neurons whose output columns are zero add nothing, so a model without them equals one with zeros."""
    model, reference = made(name), made(name)
    layers = range(len(model.model.layers))
    pruned = apply(
        load(model), Pruning(kv_groups={i: [i % 2] for i in layers}, neurons={i: [0, 7 + i] for i in layers})
    )
    with torch.no_grad():
        for index, layer in enumerate(reference.model.layers):
            lost = slice(30, 60) if index % 2 else slice(0, 30)
            layer.self_attn.o_proj.weight[:, lost] = 0
            layer.mlp.down_proj.weight[:, [0, 7 + index]] = 0
    for block in pruned.blocks:
        assert (block.mha.heads, block.mha.kv_heads, block.ffn.width) == (3, 1, 35)
        for linear in (block.mha.q, block.mha.k, block.mha.v, block.mha.o):
            assert linear.bias is None or linear.bias.shape == linear.weight.shape[:1]
    assert windows(pruned) == MODELS[name][2]
    assert_as_near_as(our_logits(pruned), reference, logits)
    pruned.save(tmp_path / "saved")
    assert torch.equal(logits(plain(tmp_path / "saved")), logits(to_transformers(pruned)))
    again = load(tmp_path / "saved")
    assert same_tensors(again, pruned)
    assert again.pruning == pruned.pruning


@pytest.mark.parametrize("name", [*FAMILIES, "qwen3 with biases"])
def test_padded_models_compute_the_same(made, tmp_path, name):
    decoder = load(made(name))
    padded = pad(decoder, 16)
    assert padded.blocks[0].ffn.width == 48
    assert_as_near_as(our_logits(padded), to_transformers(decoder), logits)
    padded.save(tmp_path / "saved")
    assert torch.equal(logits(plain(tmp_path / "saved")), logits(to_transformers(padded)))


@pytest.mark.parametrize("gone", [{0}, {1}, {2}, {3}, {0, 1}, {0, 2}, {1, 3}, {2, 3}, {0, 1, 2}], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_cached_generation_where_windows_are_mixed_and_attention_is_missing(made, name, gone):
    """Nine new tokens behind four: the window of five is passed while transformers' cache is in use."""
    pruned = apply(load(made(name, eos_token_id=None, num_hidden_layers=4)), Pruning(mha=gone))
    model = to_transformers(pruned)
    prompt = IDS[:, :4]
    options = {"max_new_tokens": 9, "do_sample": False, "attention_mask": torch.ones_like(prompt), "pad_token_id": 0}
    found = model.generate(prompt, use_cache=True, **options)
    assert torch.equal(found, model.generate(prompt, use_cache=False, **options))
    assert_as_near_as(our_logits(pruned), model, logits)


def with_windows(decoder, *sizes):
    blocks = zip(decoder.blocks, sizes, strict=True)
    return replace(decoder, blocks=tuple(replace(b, mha=replace(b.mha, window=size)) for b, size in blocks))


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("llama", (0, 3, 0), "a window of 3 positions: a llama has none"),
        ("mistral", (4, 4, 0), r"differ between blocks \(\[0, 4\]\): a mistral has one for all"),
        ("qwen2", (4, 0, 5), r"differ between blocks \(\[4, 5\]\): a qwen2 has one size"),
        ("qwen3", (4, 0, 5), r"differ between blocks \(\[4, 5\]\): a qwen3 has one size"),
    ],
)
def test_windows_that_a_family_cannot_express_are_refused(made, tmp_path, name, sizes, message):
    decoder = with_windows(load(made(name)), *sizes)
    with pytest.raises(InputError, match=message):
        decoder.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(InputError, match=message):
        to_transformers(decoder)


@pytest.mark.parametrize(
    ("name", "foreign", "message"),
    [
        ("qwen2", "qwen3", "block 0: no biases, q/k-norm: a qwen2 has no q/k-norm"),
        ("qwen3", "qwen2", "block 0: biases on q k v, no q/k-norm: a qwen3 has q/k-norm"),
        ("llama", "qwen3", "block 0: no biases, q/k-norm: a llama has no q/k-norm"),
    ],
)
def test_blocks_with_the_head_norms_of_another_family_are_not_saved(made, tmp_path, name, foreign, message):
    decoder = replace(load(made(name)), blocks=load(made(foreign)).blocks)
    with pytest.raises(InputError, match=message):
        decoder.save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_biases_that_a_family_has_not_are_saved_as_a_type_of_ours(made, tmp_path):
    decoder = replace(load(made("mistral")), blocks=load(made("qwen2")).blocks)
    decoder.save(tmp_path / "saved")
    assert plain(tmp_path / "saved").config.model_type == "pyprune_mistral"
    assert torch.equal(logits(plain(tmp_path / "saved")), logits(to_transformers(decoder)))
    assert same_tensors(load(tmp_path / "saved"), decoder)


def test_other_families_are_refused_with_those_accepted(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gemma"}')
    with pytest.raises(InputError, match="model_type gemma is not supported; accepted: llama, mistral, qwen2, qwen3"):
        load(tmp_path)


KINDS = ["full_attention", "sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mistral", {"sliding_window": 0}, "sliding_window is 0; null or a positive integer"),
        ("mistral", {"sliding_window": 4, "layer_types": KINDS}, "names full_attention, but sliding_window 4"),
        ("mistral", {"layer_types": KINDS}, "layer_types names sliding_attention, but sliding_window None"),
        ("qwen2", {"layer_types": KINDS}, "layer_types names sliding_attention, but sliding_window is None"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": -1, "layer_types": KINDS}, "sliding_window is -1"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "names 'chunked_attention'; accepted: full_attention"),
        ("qwen2", {"layer_types": KINDS[:2]}, "refused by transformers"),
        ("qwen3", {"layer_types": KINDS, "use_sliding_window": False, "sliding_window": 4}, "use_sliding_window False"),
    ],
)  # fmt: skip
def test_contradictory_windows_are_refused(made, tmp_path, name, changes, message):
    made(name).save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path / "theirs")
    assert "config.json" in str(caught.value)


def test_a_bias_that_the_configuration_denies_is_refused(made, tmp_path):
    made("qwen3 with biases").save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "attention_bias": False}))
    with pytest.raises(InputError, match=r"k_proj\.bias is not expected by the configuration"):
        load(tmp_path / "theirs")


def test_a_missing_bias_is_named(made, tmp_path):
    from safetensors.torch import load_file, save_file

    made("qwen2").save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs/model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.self_attn.v_proj.bias"]
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"model\.layers\.1\.self_attn\.v_proj\.bias is missing"):
        load(tmp_path / "theirs")


def test_an_original_with_other_windows_is_refused(made, tmp_path):
    apply(load(made("qwen2 with windows")), Pruning(blocks=[0])).save(tmp_path / "saved")
    file = tmp_path / "saved/original_config.json"
    original = json.loads(file.read_text())
    file.write_text(json.dumps({**original, "layer_types": ["full_attention"] * 4}))
    with pytest.raises(InputError, match=r"original_config\.json: block 2 has a window of 0; in config\.json it has 5"):
        load(tmp_path / "saved")
    file.write_text(json.dumps({**original, "model_type": "qwen3"}))
    with pytest.raises(InputError, match="model_type qwen3 is of another family"):
        load(tmp_path / "saved")


def test_a_llama_saved_as_mistral_is_a_llama_again(random_model, tmp_path):
    """Five KV groups of ten, of which one goes: 8 heads no longer divide 50."""
    model = random_model("llama", hidden_size=50, num_attention_heads=10, num_key_value_heads=5)
    pruned = apply(load(model), Pruning(kv_groups={i: [1] for i in range(3)}))
    pruned.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert (config["model_type"], config["num_attention_heads"], config["sliding_window"]) == ("mistral", 8, None)
    again = load(tmp_path / "saved")
    assert (again.config["model_type"], again.config["num_attention_heads"]) == ("llama", 10)
    assert same_tensors(again, pruned)
    assert torch.equal(logits(plain(tmp_path / "saved")), logits(to_transformers(again)))
