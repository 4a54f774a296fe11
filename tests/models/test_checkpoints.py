"""Directories written by pyprune, read by pyprune and by plain transformers."""

from __future__ import annotations

import errno
import json
from dataclasses import replace

import pytest
import torch

import pyprune
from pyprune.errors import InputError
from pyprune.models import FFN, Linear, checkpoints, load, to_transformers
from pyprune.models.families import family_of
from tests.fresh import run_fresh

IDS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]]

PLAIN_LOGITS = """
import sys, torch
from transformers import AutoModelForCausalLM
from safetensors.torch import save_file
torch.set_num_threads(1)
for directory in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="sdpa")
    with torch.no_grad():
        logits = model(torch.tensor(IDS)).logits.contiguous()
    save_file({"logits": logits}, directory + ".out")
assert "pyprune" not in sys.modules
""".replace("IDS", str(IDS))

OUR_TENSORS = """
import sys
from safetensors.torch import save_file
import pyprune.models
for directory in sys.argv[1:]:
    decoder = pyprune.models.load(directory)
    save_file({name: tensor.contiguous() for name, tensor in decoder.tensors()}, directory + ".out")
"""


def fresh(code, environment, *directories):
    """Run `code` over the directories in a new Python; the tensors it saved for each."""
    from safetensors.torch import load_file

    run_fresh(code, environment, *directories)
    return [load_file(f"{directory}.out") for directory in directories]


def logits(model):
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits


def plain_logits(directory):
    """Logits of what plain transformers makes of the directory."""
    from transformers import AutoModelForCausalLM

    return logits(AutoModelForCausalLM.from_pretrained(directory, attn_implementation="sdpa"))


def same(ours, theirs):
    first, second = dict(ours.tensors()), dict(theirs.tensors())
    assert list(first) == list(second)
    return all(torch.equal(first[name], second[name]) for name in first)


def without(decoder, *gone):
    """Blocks removed, with the record that a pruning leaves."""
    record = pyprune.Pruning(model=decoder.name, blocks=gone, made_by="depth ppl block")
    blocks = tuple(block for block in decoder.blocks if block.index not in gone)
    return replace(decoder, blocks=blocks, pruning=record)


def narrowed(decoder, width):
    """The first `width` neurons of every FFN: rows and columns that are views of the original's."""

    def ffn(part):
        gate, up = Linear(part.gate.weight[:width]), Linear(part.up.weight[:width])
        return FFN(part.norm, gate, up, Linear(part.down.weight[:, :width]))

    return replace(decoder, blocks=tuple(replace(block, ffn=ffn(block.ffn)) for block in decoder.blocks))


@pytest.mark.slow
def test_fresh_process_reads_the_same_tensors_and_the_same_logits(llama, tmp_path, package_environment):
    variants = {
        "bf16": {"dtype": torch.bfloat16},
        "tied": {"tie_word_embeddings": True, "head_dim": 10},
        "biased": {"attention_bias": True, "mlp_bias": True},
        "rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}},
    }
    decoders = {name: load(llama(**changes)) for name, changes in variants.items()}
    decoders["pruned"] = narrowed(without(load(llama(num_hidden_layers=5)), 0, 3), 29)
    for name, decoder in decoders.items():
        decoder.save(tmp_path / name)
    directories = [tmp_path / name for name in decoders]
    tensors = fresh(OUR_TENSORS, package_environment, *directories)
    plain = fresh(PLAIN_LOGITS, package_environment, *directories)
    for decoder, read, theirs in zip(decoders.values(), tensors, plain, strict=True):
        assert set(read) == {name for name, _ in decoder.tensors()}
        assert all(torch.equal(read[name], tensor) for name, tensor in decoder.tensors())
        assert theirs["logits"].dtype == decoder.dtype
        assert torch.equal(theirs["logits"], logits(to_transformers(decoder)))


def test_heads_that_do_not_divide_the_hidden_size_are_written_as_mistral(mistral, tmp_path):
    """A Llama of hidden size 64 pruned from 4 heads of 16 to 3."""
    decoder = load(mistral())
    llama_config = {**decoder.config, "model_type": "llama", "num_attention_heads": 4, "architectures": None}
    llama_config |= {"attention_bias": False, "mlp_bias": False}
    llama_config.pop("sliding_window")
    decoder = replace(decoder, config=llama_config)
    decoder.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert (config["model_type"], config["head_dim"], config["num_attention_heads"]) == ("mistral", 16, 3)
    assert config["sliding_window"] is None
    assert "sliding_window" in config
    assert config["architectures"] == ["MistralForCausalLM"]
    assert torch.equal(plain_logits(tmp_path / "saved"), logits(to_transformers(decoder)))
    assert same(load(tmp_path / "saved"), decoder)


def test_such_heads_with_biases_have_no_plain_form(llama, tmp_path):
    """Mistral has no biases."""
    decoder = load(llama(attention_bias=True))
    blocks = tuple(
        replace(
            block,
            mha=replace(
                block.mha,
                heads=5,
                kv_heads=1,
                q=Linear(block.mha.q.weight[:40], block.mha.q.bias[:40]),
                k=Linear(block.mha.k.weight[:8], block.mha.k.bias[:8]),
                v=Linear(block.mha.v.weight[:8], block.mha.v.bias[:8]),
                o=Linear(block.mha.o.weight[:, :40], block.mha.o.bias),
            ),
        )
        for block in decoder.blocks
    )
    decoder = replace(decoder, blocks=blocks)
    with pytest.raises(InputError, match="5 heads do not divide the hidden size 48"):
        family_of("llama", "").plain_config(decoder)
    decoder.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["model_type"] == "pyprune_llama"
    assert same(load(tmp_path / "saved"), decoder)
    assert torch.equal(plain_logits(tmp_path / "saved"), logits(to_transformers(decoder)))


def test_pruned_checkpoint_gets_its_record_and_original_indices_back(llama, tmp_path):
    decoder = load(llama(num_hidden_layers=6))
    pruned = narrowed(without(decoder, 1, 4), 23)
    pruned.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert [block.index for block in again.blocks] == [0, 2, 3, 5]
    assert again.pruning == pruned.pruning
    assert again.config == decoder.config
    assert again.original_blocks == 6
    assert again.blocks[0].ffn.width == 23
    assert same(again, pruned)
    again.save(tmp_path / "twice")
    assert same(load(tmp_path / "twice"), pruned)


def test_pruned_checkpoint_is_plain_for_transformers(llama, tmp_path):
    pruned = narrowed(without(load(llama(num_hidden_layers=5)), 0, 3), 29)
    pruned.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert (config["num_hidden_layers"], config["intermediate_size"], config["head_dim"]) == (3, 29, 8)
    assert torch.equal(plain_logits(tmp_path / "saved"), logits(to_transformers(pruned)))


def test_record_that_does_not_fit_the_blocks_is_refused(llama, tmp_path):
    pruned = without(load(llama()), 1)
    wrong = replace(pruned, pruning=replace(pruned.pruning, blocks=[2]))
    with pytest.raises(InputError, match=r"leaves blocks \[0, 1\], but it holds blocks \[0, 2\]"):
        wrong.save(tmp_path / "saved")
    pruned.save(tmp_path / "saved")
    record = tmp_path / "saved/pruning.json"
    record.write_text(record.read_text().replace('"blocks": [\n  1\n ]', '"blocks": []'))
    with pytest.raises(InputError, match=r"pruning\.json: leaves 3 of 3 blocks, but the checkpoint holds 2"):
        load(tmp_path / "saved")


def test_a_loaded_model_has_the_record_of_the_directory_it_came_from(llama, tmp_path):
    from transformers import AutoModelForCausalLM

    pruned = pyprune.apply(load(llama(num_hidden_layers=5)), pyprune.Pruning(blocks=[0, 3], neurons={2: [4]}))
    pruned.save(tmp_path / "saved")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    decoder = load(model)
    assert [block.index for block in decoder.blocks] == [1, 2, 4]
    assert (decoder.pruning, decoder.config) == (pruned.pruning, pruned.config)
    less = pyprune.Pruning(blocks=[4], neurons={1: [0]})
    assert same(pyprune.apply(decoder, less), pyprune.apply(load(tmp_path / "saved"), less))


def test_a_record_that_does_not_fit_a_loaded_model_is_left_out_with_a_warning(llama, tmp_path):
    from transformers import AutoModelForCausalLM

    without(load(llama(num_hidden_layers=4)), 1).save(tmp_path / "saved")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    del model.model.layers[2]
    model.config.num_hidden_layers = 2
    with pytest.warns(
        UserWarning, match=r"leaves 3 of 4 blocks, but .* holds 2; .* those of the present model"
    ) as told:
        decoder = load(model)
    assert told[0].filename == __file__
    assert [block.index for block in decoder.blocks] == [0, 1]
    assert decoder.pruning is None


BAD_RECORDS = [
    ({"blocks": 3}, "blocks 3: a list"),
    ({"blocks": None}, "blocks None: a list"),
    ({"blocks": [[1]]}, "index in blocks [1]: a whole number"),
    ({"blocks": [True]}, "index in blocks True: a whole number"),
    ({"blocks": [1.0]}, "index in blocks 1.0: a whole number"),
    ({"blocks": [3]}, "blocks names block 3; 0 to 2 of saved are accepted"),
    ({"blocks": [-1]}, "blocks names -1; indices from 0"),
    ({"blocks": [1, 1]}, "blocks names 1 twice"),
    ({"mha": 5}, "mha 5: a list"),
    ({"ffn": "0"}, "ffn '0': a list"),
    ({"neurons": 7}, "neurons 7: an object"),
    ({"neurons": {"x": [1]}}, "neurons key 'x': a block index"),
    ({"neurons": {"9" * 5000: [1]}}, f"neurons key '{'9' * 5000}': a block index"),
    ({"kv_groups": {"3": [1]}}, "kv_groups names block 3; 0 to 2 of saved"),
    ({"kv_groups": {"0": 1}}, "kv_groups of block 0 1: a list"),
    ({"kv_groups": {"0": [2]}}, "kv_groups of block 0 names 2; 0 to 1 of saved"),
    ({"heads": {"0": [6]}}, "heads of block 0 names 6; 0 to 5 of saved"),
    ({"neurons": {"0": [37]}}, "neurons of block 0 names 37; 0 to 36 of saved"),
    ({"pad_to": "x"}, "pad_to 'x': a whole number"),
    ({"pad_to": 0}, "pad_to 0: a multiple from 1"),
    ({"compensation": []}, "compensation []: an object"),
    ({"compensation": {"blocks.0.o.bias": ["x"]}}, "compensation of blocks.0.o.bias ['x']: a list of SHA-256"),
    ({"made_by": {}}, "made_by {}: a string"),
    ({"model": 3}, "model 3: a string"),
    ({"layers": []}, "unknown key 'layers'; model, blocks"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_RECORDS, ids=str)
def test_malformed_record_is_refused_by_file_key_and_value(llama, tmp_path, changes, message):
    without(load(llama()), 1).save(tmp_path / "saved")
    file = tmp_path / "saved/pruning.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(InputError) as caught:
        load(tmp_path / "saved")
    assert f"{file}: pruning: {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_record_without_some_keys_removes_nothing_there(llama, tmp_path):
    without(load(llama()), 1).save(tmp_path / "saved")
    (tmp_path / "saved/pruning.json").write_text('{"blocks": [1]}')
    assert [block.index for block in load(tmp_path / "saved").blocks] == [0, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 96}, "hidden_size is 96; the checkpoint's weights and config.json have 48"),
        ({"vocab_size": 60}, "vocab_size is 60; the checkpoint's weights and config.json have 61"),
        ({"head_dim": 10}, "head_dim is 10"),
        ({"rms_norm_eps": 1e-3}, "rms_norm_eps is 0.001"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x'; a positive number"),
        ({"hidden_size": True}, "hidden_size is True; a positive integer"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers is 3; a count"),
        ({"rope_parameters": None}, "rope_parameters is None; an object"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta is 0; a positive number"),
        ({"model_type": None}, "model_type None is not supported"),
    ],
    ids=str,
)
def test_original_configuration_that_contradicts_the_weights_is_refused(llama, tmp_path, changes, message):
    without(load(llama()), 1).save(tmp_path / "saved")
    file = tmp_path / "saved/original_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(InputError) as caught:
        load(tmp_path / "saved")
    assert f"{file}: {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("half", "title"), [("mha", "attention"), ("ffn", "FFN")])
def test_a_plain_configuration_of_a_missing_half_is_refused_and_names_it(llama, half, title):
    decoder = load(llama())
    blocks = (decoder.blocks[0], replace(decoder.blocks[1], **{half: None}), decoder.blocks[2])
    with pytest.raises(InputError, match=f"not uniform: block 1 has no {title}"):
        family_of("llama", "").plain_config(replace(decoder, blocks=blocks))


def test_a_plain_configuration_names_the_first_block_of_another_width(llama):
    decoder = load(llama())
    mixed = replace(decoder, blocks=(*decoder.blocks[:2], narrowed(decoder, 20).blocks[2]))
    with pytest.raises(InputError, match="block 2 has width 20, block 0 has 37"):
        family_of("llama", "").plain_config(mixed)


def test_a_plain_configuration_of_biases_on_part_of_a_half_is_refused(llama):
    decoder = load(llama())
    blocks = tuple(
        replace(block, ffn=replace(block.ffn, down=Linear(block.ffn.down.weight, torch.ones(48))))
        for block in decoder.blocks
    )
    with pytest.raises(InputError, match="biases on down, no q/k-norm: a plain llama has biases on all"):
        family_of("llama", "").plain_config(replace(decoder, blocks=blocks))


def test_directory_that_is_not_empty_is_refused_and_left_alone(llama, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine").write_text("x")
    with pytest.raises(InputError, match="there: is a directory that is not empty"):
        load(llama()).save(tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine"]


def test_failure_while_writing_leaves_nothing(llama, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoints, "write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        load(llama()).save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_an_os_error_with_its_number(llama, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        load(llama()).save(tmp_path / "saved")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename.endswith("model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_other_failures_of_safetensors_stay_what_they_are(llama, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def broken(*_, **__):
        raise SafetensorError("invalid shape")

    monkeypatch.setattr("safetensors.torch.save_file", broken)
    with pytest.raises(SafetensorError, match="invalid shape"):
        load(llama()).save(tmp_path / "saved")


FILE_TOO_LARGE = """
import resource, sys
import pyprune.models
decoder = pyprune.models.load("shape:tiny")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    decoder.save(sys.argv[1])
except OSError as error:
    print(error.errno)
"""


@pytest.mark.slow
def test_safetensors_words_its_errors_as_we_read_them(tmp_path, package_environment):
    """A real write that fails: the limit on a file's size stands in for the full disk."""
    assert int(run_fresh(FILE_TOO_LARGE, package_environment, tmp_path / "saved")) == errno.EFBIG


@pytest.mark.parametrize("tied", [True, False])
def test_shards_have_an_index_and_a_tied_head_is_not_repeated(llama, tmp_path, monkeypatch, tied):
    monkeypatch.setattr(checkpoints, "MAX_SHARD", "20KB")
    decoder = load(llama(tie_word_embeddings=tied))
    decoder.save(tmp_path / "saved")
    index = json.loads((tmp_path / "saved/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert ("lm_head.weight" in index["weight_map"]) is not tied
    assert same(load(tmp_path / "saved"), decoder)
    assert torch.equal(plain_logits(tmp_path / "saved"), logits(to_transformers(decoder)))


def test_configuration_and_generation_settings_survive(llama, tmp_path):
    model = llama(dtype=torch.bfloat16, eos_token_id=[7, 9], pad_token_id=4, rms_norm_eps=3e-5)
    model.generation_config.max_length = 77
    decoder = load(model)
    decoder.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert (again.eos_token_ids(), again.pad_token_id(), again.eps) == ((7, 9), 4, 3e-5)
    assert again.generation_config["max_length"] == 77
    assert again.config == {**decoder.config, "architectures": ["LlamaForCausalLM"]}
    assert json.loads((tmp_path / "saved/config.json").read_text())["dtype"] == "bfloat16"


def test_dtype_written_is_the_one_of_the_tensors(saved, tmp_path):
    load(saved(dtype=torch.bfloat16), dtype="fp16").save(tmp_path / "saved")
    assert load(tmp_path / "saved").dtype == torch.float16


@pytest.fixture
def with_tokenizer(saved):
    """Write a small tokenizer into a saved model's directory; the directory."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    directory = saved()

    def write(**words):
        core = Tokenizer(models.WordLevel({"<unk>": 0, **words}, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>").save_pretrained(directory)
        return directory

    return write


def test_tokenizer_is_copied(with_tokenizer, tmp_path):
    load(with_tokenizer(a=1, b=2)).save(tmp_path / "saved")
    assert load(tmp_path / "saved").tokenizer()("b a x")["input_ids"] == [2, 1, 0]


def test_tokenizer_is_read_once_and_each_caller_may_change_its_own(with_tokenizer, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    decoder = load(with_tokenizer(a=1, b=2))
    first = decoder.tokenizer()
    first.add_tokens(["x"])
    first.pad_token = "x"
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", None)  # read again, it would fail
    second = load(decoder).tokenizer()
    assert (len(first), len(second), second.pad_token) == (4, 3, None)
    assert (first("b x")["input_ids"], second("b x")["input_ids"]) == ([2, 3], [2, 0])
    decoder.save(tmp_path / "saved")
    monkeypatch.undo()
    saved_tokenizer = load(tmp_path / "saved").tokenizer()
    assert (saved_tokenizer("b x")["input_ids"], saved_tokenizer.pad_token) == ([2, 0], None)


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_a_model_of_the_hub_has_the_tokenizer_of_its_name(random_model, with_tokenizer, tmp_path, monkeypatch, family):
    from transformers import AutoTokenizer

    tokenizer, asked = load(with_tokenizer(a=1, b=2)).tokenizer(), []
    model = random_model(family)
    model.config._name_or_path = f"org/{family}"
    decoder = pyprune.load_any(model)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name: asked.append(name) or tokenizer)
    decoder.save(tmp_path / "saved")
    assert asked == [f"org/{family}"]
    monkeypatch.undo()
    assert pyprune.load_any(tmp_path / "saved").tokenizer()("b a x")["input_ids"] == [2, 1, 0]


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_a_model_of_the_hub_whose_tokenizer_cannot_be_had_is_saved_with_a_warning(random_model, tmp_path, family):
    model = random_model(family)
    model.config._name_or_path = "org/without"
    decoder = pyprune.load_any(model)
    with pytest.raises(InputError, match="org/without: its tokenizer cannot be read"):
        decoder.tokenizer()
    with pytest.warns(UserWarning, match="org/without is saved without a tokenizer") as told:
        decoder.save(tmp_path / "saved")
    assert told[0].filename == __file__
    assert pyprune.load_any(tmp_path / "saved").tokenizer_source is None


def test_tokenizer_written_anew_is_read_anew(with_tokenizer):
    assert load(with_tokenizer(a=1, b=2)).tokenizer()("b c")["input_ids"] == [2, 0]
    assert load(with_tokenizer(a=1, b=2, c=3)).tokenizer()("b c")["input_ids"] == [2, 3]
