"""Checkpoints of models whose blocks differ: read again by pyprune and, after `import pyprune`, by transformers."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from ragged_samples import MODELS, RAGGED, variants, with_biases
from safetensors.torch import load_file

import pyprune
from pyprune.errors import InputError
from pyprune.models import load, to_transformers
from pyprune.models.load import load_sizes
from pyprune.pruning import Pruning, apply
from tests.fresh import run_fresh
from tests.judge import assert_model_no_worse, assert_same_tokens, in_float64

IDS = torch.arange(26).view(2, 13) * 17 % 61
OPTIONS = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}


@pytest.fixture
def decoder_of(random_model):
    """A decoder of MODELS, without an end-of-text token."""

    def make(name, **changes):
        model_type, own = MODELS[name]
        return load(random_model(model_type, **{**own, "eos_token_id": None, **changes}))

    return make


@pytest.fixture
def loaded(tmp_path):
    """A decoder saved and read by transformers."""

    def through(decoder, name="saved", **options):
        from transformers import AutoModelForCausalLM

        if not (tmp_path / name).exists():
            decoder.save(tmp_path / name)
        return AutoModelForCausalLM.from_pretrained(tmp_path / name, **options)

    return through


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def tokens(model, ids=IDS, **options):
    return model.generate(ids, attention_mask=torch.ones_like(ids), **{**OPTIONS, **options})


def same(one, other):
    ours, theirs = dict(one.tensors()), dict(other.tensors())
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


# --- in another process ---------------------------------------------------------------------------------------------

READ_ALL = """
import json, sys
import pyprune
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
ids = torch.arange(26).view(2, 13) * 17 % 61
mask, out = torch.ones_like(ids), {}
for directory in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        out[directory + "|logits"] = model(ids).logits
    out[directory + "|tokens"] = model.generate(
        ids, attention_mask=mask, max_new_tokens=9, do_sample=False, pad_token_id=0)
    out |= {directory + "|" + name: tensor.clone() for name, tensor in pyprune.load(directory).tensors()}
save_file(out, sys.argv[1])
"""


@pytest.fixture
def one_thread():
    """A matrix product's last bits depend on the number of threads: here, too, it is one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("third", [0, *(pytest.param(third, marks=pytest.mark.full) for third in (1, 2))])
def test_a_fresh_process_reads_the_same_tensors_logits_and_tokens(decoder_of, tmp_path, package_environment, third):
    """Every family with every way of pruning: each third of these has every family and every way."""
    made = {}
    for place, family in enumerate(MODELS):
        for way, (name, decoder) in enumerate(variants(decoder_of(family)).items()):
            if (place + way) % 3 == third:
                made[tmp_path / f"{family} {name}".replace(" ", "-")] = decoder
    for directory, decoder in made.items():
        decoder.save(directory)
    run_fresh(READ_ALL, package_environment, tmp_path / "out", *made)
    found = load_file(tmp_path / "out")
    for directory, decoder in made.items():
        model = to_transformers(decoder)
        assert torch.equal(found[f"{directory}|logits"], logits(model)), directory
        assert torch.equal(found[f"{directory}|tokens"], tokens(model)), directory
        for name, tensor in decoder.tensors():
            assert torch.equal(found[f"{directory}|{name}"], tensor), (directory, name)


IMPORT_ORDERS = {
    "transformers' model, then pyprune": "from transformers import LlamaForCausalLM, AutoModelForCausalLM\n"
    "import pyprune",
    "pyprune, then a configuration of transformers": "import pyprune\n"
    "from transformers import Qwen2Config\nfrom transformers import AutoModelForCausalLM",
    "pyprune, then the models it reads": "import pyprune, pyprune.models\nfrom transformers import AutoConfig\n"
    "AutoConfig.from_pretrained(sys.argv[1])\nfrom transformers import AutoModelForCausalLM",
}


@pytest.mark.slow
@pytest.mark.parametrize("order", IMPORT_ORDERS)
def test_either_may_be_imported_first(decoder_of, tmp_path, package_environment, order):
    apply(decoder_of("llama"), Pruning(mha=[1])).save(tmp_path / "saved")
    code = f"import sys\n{IMPORT_ORDERS[order]}\n" + (
        "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)"
    )
    assert run_fresh(code, package_environment, tmp_path / "saved").strip() == "PyPruneLlamaForCausalLM"


@pytest.mark.slow
def test_a_pickled_model_is_found_again_in_a_process_that_knows_only_its_modules(
    decoder_of, tmp_path, package_environment
):
    model = to_transformers(apply(decoder_of("qwen3 with windows"), Pruning(mha=[1])))
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    code = "import pickle, sys\nprint(type(pickle.load(open(sys.argv[1], 'rb'))).__name__)"
    assert run_fresh(code, package_environment, tmp_path / "model.pickle").strip() == "PyPruneQwen3ForCausalLM"


WITHOUT_PYPRUNE = """
import sys
from transformers import AutoModelForCausalLM, LlamaForCausalLM
for directory in sys.argv[1:]:
    for model in (AutoModelForCausalLM, LlamaForCausalLM):
        try:
            model.from_pretrained(directory)
            print("loaded")
        except Exception as error:
            print(type(error).__name__, str(error).splitlines()[0])
assert "pyprune" not in sys.modules
"""


@pytest.mark.slow
def test_without_pyprune_it_is_an_error_and_never_random_weights(decoder_of, tmp_path, package_environment):
    made = variants(decoder_of("llama"))
    for name in RAGGED:
        made[name].save(tmp_path / name)
    told = run_fresh(WITHOUT_PYPRUNE, package_environment, *(tmp_path / name for name in RAGGED)).splitlines()
    assert len(told) == 2 * len(RAGGED)
    assert all("model type `pyprune_llama`" in line for line in told[::2])
    assert all("is a per-layer attribute" in line for line in told[1::2])


def test_importing_pyprune_imports_neither_torch_nor_transformers(package_environment):
    code = "import pyprune, sys; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=package_environment, check=True, timeout=300, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# --- what is written ------------------------------------------------------------------------------------------------


def test_layers_state_what_they_have_otherwise(decoder_of, tmp_path):
    made = variants(decoder_of("llama"))
    made["composed"].save(tmp_path / "composed")
    config = config_of(tmp_path / "composed")
    assert (config["model_type"], config["architectures"]) == ("pyprune_llama", ["PyPruneLlamaForCausalLM"])
    assert (config["num_hidden_layers"], config["intermediate_size"], config["num_attention_heads"]) == (3, 37, 6)
    assert config["per_layer_config"] == {
        "0": {"intermediate_size": 0, "skip": ["mlp"]},
        "1": {"intermediate_size": 35, "num_attention_heads": 0, "num_key_value_heads": 1, "skip": ["attention"]},
        "2": {"intermediate_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1},
    }
    made["biases"].save(tmp_path / "biases")
    layers = config_of(tmp_path / "biases")["per_layer_config"]
    assert [layers[str(i)]["projection_biases"] for i in range(4)] == [["down_proj"], ["o_proj"]] * 2


@pytest.mark.parametrize("name", ["depth", "width", "padded"])
@pytest.mark.parametrize("family", MODELS)
def test_what_transformers_can_express_stays_plain(decoder_of, tmp_path, family, name):
    decoder = variants(decoder_of(family))[name]
    decoder.save(tmp_path / "saved")
    config = config_of(tmp_path / "saved")
    assert config["model_type"] == decoder.config["model_type"]
    assert "per_layer_config" not in config


@pytest.mark.parametrize("name", RAGGED)
@pytest.mark.parametrize("family", MODELS)
def test_a_decoder_comes_back_with_record_indices_and_windows(decoder_of, tmp_path, family, name):
    decoder = variants(decoder_of(family))[name]
    decoder.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert same(again, decoder)
    assert (again.pruning, again.config) == (decoder.pruning, decoder.config)
    assert [block.index for block in again.blocks] == [block.index for block in decoder.blocks]
    for ours, theirs in zip(again.blocks, decoder.blocks, strict=True):
        assert (ours.mha is None, ours.ffn is None) == (theirs.mha is None, theirs.ffn is None)
        if ours.mha is not None:
            assert (ours.mha.heads, ours.mha.kv_heads) == (theirs.mha.heads, theirs.mha.kv_heads)
            assert ours.mha.window == theirs.mha.window
    sizes = load_sizes(tmp_path / "saved")
    assert [(n, t.shape) for n, t in sizes.tensors()] == [(n, t.shape) for n, t in decoder.tensors()]
    more = apply(again, Pruning(neurons={3: [30]})) if again.blocks[-1].ffn is not None else apply(again, Pruning())
    more.save(tmp_path / "more")
    assert same(load(tmp_path / "more"), more)


def test_a_decoder_without_a_record_is_saved_too(decoder_of, tmp_path):
    decoder = decoder_of("qwen3 with windows")
    blocks = (replace(decoder.blocks[0], ffn=None), *decoder.blocks[1:])
    replace(decoder, blocks=blocks).save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert (again.blocks[0].ffn, again.pruning) == (None, None)
    made_by_saving = {"architectures": ["Qwen3ForCausalLM"], "max_window_layers": 0}
    assert again.config == {**decoder.config, **made_by_saving}
    assert not (tmp_path / "saved/pruning.json").exists()


@pytest.mark.parametrize("tied", [True, False])
def test_shards_have_an_index(decoder_of, tmp_path, monkeypatch, loaded, tied):
    monkeypatch.setattr("pyprune.models.checkpoints.MAX_SHARD", "20KB")
    decoder = variants(decoder_of("llama", tie_word_embeddings=tied))["halves"]
    model = loaded(decoder)
    index = json.loads((tmp_path / "saved/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert ("lm_head.weight" in index["weight_map"]) is not tied
    assert same(load(tmp_path / "saved"), decoder)
    assert torch.equal(logits(model), logits(to_transformers(decoder)))


def test_a_loaded_model_of_ours_is_read_where_it_lies(decoder_of, loaded):
    decoder = variants(decoder_of("qwen2 with windows"))["biases"]
    model = loaded(decoder)
    again = load(model)
    assert {t.data_ptr() for _, t in again.tensors()} == {t.data_ptr() for t in model.state_dict().values()}
    assert [t.tolist() for _, t in again.tensors()] == [t.tolist() for _, t in decoder.tensors()]


# --- what the model does --------------------------------------------------------------------------------------------


def zeroed(decoder, model):
    """A plain model with what `decoder` lacks set to zero where it would be added; its biases added."""
    with torch.no_grad():
        for block in decoder.blocks:
            layer = model.model.layers[block.index]
            if block.mha is None:
                layer.self_attn.o_proj.weight.zero_()
            if block.ffn is None:
                layer.mlp.down_proj.weight.zero_()
    return model


@pytest.mark.parametrize("family", ["llama", "mistral with a window", "qwen2 with windows", "qwen3 with windows"])
def test_halves_that_are_gone_add_nothing(random_model, decoder_of, loaded, family):
    decoder = variants(decoder_of(family))["halves"]
    expected = logits(zeroed(decoder, random_model(MODELS[family][0], **MODELS[family][1])))
    assert torch.equal(logits(loaded(decoder)), expected)


CACHED = ("llama", "mistral with a window", "qwen2 with windows", "qwen3 with windows")
EACH_WITH_ONE = [
    pytest.param(family, name, attention, marks=[pytest.mark.full] if (place + way + other) % 2 else [])
    for place, family in enumerate(CACHED)
    for way, name in enumerate(RAGGED)
    for other, attention in enumerate(("sdpa", "eager"))
]
"""Of each family and way of pruning the one implementation of attention or the other, by turns; the rest is `full`."""


@pytest.mark.parametrize(("family", "name", "attention"), EACH_WITH_ONE)
def test_both_caches_give_the_tokens_of_none(decoder_of, loaded, family, name, attention):
    """Nine new tokens behind four: the window of five is passed while the caches are in use."""
    model = loaded(variants(decoder_of(family))[name], attn_implementation=attention)
    prompt = IDS[:, :4]
    expected = tokens(model, prompt, use_cache=False)
    assert_same_tokens(tokens(model, prompt), expected, model)
    assert_same_tokens(tokens(model, prompt, cache_implementation="static", disable_compile=True), expected, model)


def test_the_engine_gives_the_same_tokens(decoder_of, loaded):
    decoder = variants(decoder_of("llama"))["biases"]
    ours = pyprune.Engine(load(decoder), max_batch=2, max_len=32).generate(IDS, max_new_tokens=9)
    assert torch.equal(ours, tokens(loaded(decoder))[:, IDS.shape[1] :])


def test_the_attention_implementation_can_be_changed(decoder_of, loaded):
    model = loaded(variants(decoder_of("qwen3 with windows"))["composed"])
    model.set_attn_implementation("eager")
    assert all(layer.self_attn.config._attn_implementation == "eager"
               for layer in model.model.layers if hasattr(layer.self_attn, "config"))  # fmt: skip
    with torch.no_grad():
        out = model(IDS, output_attentions=True)
    assert [tuple(part.shape) for part in out.attentions] == [(2, 6, 13, 13), (2, 3, 13, 13)]


def test_padding_on_the_left_changes_nothing(decoder_of, loaded):
    model = loaded(variants(decoder_of("llama"))["composed"])
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), IDS], 1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.int64), torch.ones_like(IDS)], 1)
    found = model.generate(padded, attention_mask=mask, **OPTIONS)
    assert torch.equal(found[:, 3:], tokens(model))


def test_save_pretrained_writes_what_loads_again(decoder_of, tmp_path, loaded):
    from transformers import AutoModelForCausalLM

    decoder = variants(decoder_of("llama"))["biases"]
    for source, name in ((loaded(decoder), "theirs"), (to_transformers(decoder), "ours")):
        source.save_pretrained(tmp_path / name)
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / name)), logits(source))
        assert same(load(tmp_path / name), decoder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(decoder_of, loaded, dtype):
    decoder = variants(decoder_of("llama", dtype=dtype))["biases"]
    model = loaded(decoder)
    assert model.dtype == dtype
    assert torch.equal(logits(model), logits(to_transformers(decoder)))


def gradients(model, checkpointing):
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", RAGGED)
def test_checkpointed_training_has_the_same_gradients(decoder_of, loaded, name):
    model = loaded(variants(decoder_of("llama"))[name])
    expected = gradients(model, checkpointing=False)
    assert all(float(gradient.abs().max()) > 0 for gradient in expected.values())
    found = gradients(model, checkpointing=True)
    assert all(torch.equal(found[part], expected[part]) for part in expected)


def test_lora_trains_saves_loads_and_merges(decoder_of, tmp_path, loaded):
    from peft import LoraConfig, PeftModel, get_peft_model

    decoder = variants(decoder_of("qwen2 with windows"))["composed"]
    adapted = get_peft_model(
        loaded(decoder), LoraConfig(r=2, lora_alpha=1, target_modules="all-linear", init_lora_weights=False)
    )
    adapted.eval()
    loss = adapted(IDS, labels=IDS).loss
    loss.backward()
    trained = [parameter for parameter in adapted.parameters() if parameter.grad is not None]
    steepness = sum(float(parameter.grad.pow(2).sum()) for parameter in trained)
    predicted = 0.002  # small enough for the first-order prediction to hold
    torch.optim.SGD(trained, lr=predicted / steepness).step()
    with torch.no_grad():
        assert float(loss - adapted(IDS, labels=IDS).loss) == pytest.approx(predicted, rel=0.25)
    expected, exact = logits(adapted), logits(in_float64(adapted))
    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(loaded(decoder), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), expected)
    merged = adapted.merge_and_unload()
    assert_model_no_worse(logits(merged), expected, exact)
    merged.save_pretrained(tmp_path / "merged")
    load(tmp_path / "merged").save(tmp_path / "again")
    assert torch.equal(logits(to_transformers(load(tmp_path / "again"))), logits(merged))


# --- what is refused ------------------------------------------------------------------------------------------------


def rewritten(directory, change):
    config = config_of(directory)
    change(config)
    (directory / "config.json").write_text(json.dumps(config))


LAYER = "per_layer_config"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[LAYER]["0"].update(skip=["norm"]), "layer 0: skip names 'norm'; accepted: attention, mlp"),
        (lambda c: c[LAYER]["0"].update(projection_biases=["x"]), "layer 0: projection_biases names 'x'; accepted: q_"),
        (lambda c: c[LAYER]["2"].update(intermediate_size=-3), "layer 2: intermediate_size is -3; a positive"),
        (lambda c: c[LAYER]["2"].update(num_key_value_heads=2), "layer 2: 2 key-value heads do not divide 3 heads"),
        (lambda c: c[LAYER]["2"].update(rms_norm_eps=0.5), "layer 2 has rms_norm_eps; accepted: num_attention_heads"),
        (lambda c: c[LAYER].update({"7": {"intermediate_size": 3}}), "refused by transformers"),
        (lambda c: c.update({LAYER: 3}), "refused by transformers"),
        (lambda c: c[LAYER].update({"1": 5}), "refused by transformers"),
        (lambda c: c[LAYER]["1"].update(intermediate_size=34), r"has shape \[35, 48\]"),
        (lambda c: c.update(hidden_act="gelu"), "hidden_act gelu is not supported"),
        (lambda c: c.update(model_type="pyprune_gemma"), "model_type gemma is not supported"),
        (lambda c: c[LAYER]["1"].update(skip=[], num_attention_heads=6), r"layers\.1\.input_layernorm\.weight is miss"),
        (lambda c: c[LAYER]["2"].update(skip=["attention"]), r"layers\.2\.\S+ is not expected"),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_refused_in_one_line(decoder_of, tmp_path, change, message):
    variants(decoder_of("llama"))["composed"].save(tmp_path / "saved")
    rewritten(tmp_path / "saved", change)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path / "saved")
    assert "\n" not in str(caught.value)


def test_a_bias_on_the_head_is_refused(decoder_of, tmp_path):
    decoder = with_biases(decoder_of("llama"))
    head = replace(decoder.head, bias=torch.ones(61))
    with pytest.raises(InputError, match="a bias on the LM head cannot be saved"):
        replace(decoder, head=head).save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_heads_of_another_size_are_refused(decoder_of, tmp_path):
    decoder = decoder_of("llama")
    mha = replace(decoder.blocks[1].mha, head_dim=20, heads=3, kv_heads=1)
    blocks = (decoder.blocks[0], replace(decoder.blocks[1], mha=mha), *decoder.blocks[2:])
    with pytest.raises(InputError, match="block 1: heads of 20; the RoPE of the model is for 10"):
        replace(decoder, blocks=blocks).save(tmp_path / "saved")


def test_a_family_without_models_of_ours_is_refused_as_before(decoder_of, tmp_path, monkeypatch):
    monkeypatch.setattr("pyprune.models.families.llama.Llama.classes", None)
    with pytest.raises(InputError, match="not uniform: block 0 has no FFN"):
        variants(decoder_of("llama"))["halves"].save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())
