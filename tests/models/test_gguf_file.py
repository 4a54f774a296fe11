"""GGUF files, against transformers' loader and against the gguf package."""

from __future__ import annotations

import builtins

import gguf
import numpy as np
import pytest
import torch
from gguf_samples import GGUF_SIZES, gguf_tensors, rotary_halves

from pyprune.errors import InputError
from pyprune.models import load, to_transformers
from pyprune.models.gguf_file import GGUFFile
from pyprune.models.gguf_rope import rotary_pairs
from pyprune.models.names import gguf_name, hf_name
from tests import seeds

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def theirs(path, dtype=torch.float32):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_and_logits_are_bit_equal_to_transformers(write_gguf, ids, kind, tied):
    path = write_gguf(kind, tensors=gguf_tensors(GGUF_SIZES, tied=tied))
    decoder, reference = load(path), theirs(path)
    assert decoder.dtype == FLOATS.get(kind, torch.float32)
    assert decoder.tied is tied
    state = reference.state_dict()
    assert {hf_name(part) for part, _ in decoder.tensors()} == set(state) - ({"lm_head.weight"} if tied else set())
    for part, tensor in load(path, dtype="f32").tensors():
        # norms are F32 in the file and take the matrices' type
        assert torch.equal(tensor, state[hf_name(part)]), part
        assert torch.equal(dict(decoder.tensors())[part], tensor.to(decoder.dtype)), part
    with torch.no_grad():
        assert torch.equal(to_transformers(load(path, dtype="f32"))(ids).logits, reference(ids).logits)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ2_0"])
def test_types_that_only_llama_cpp_writes_equal_gguf_dequantize(write_gguf, kind):
    """Random bytes, with the few float16 scales made small and finite."""
    random = np.random.default_rng(seeds.seed(5))
    sizes = {**GGUF_SIZES, "hidden": 256, "ffn": 512}

    def raw(shape, qtype):
        block, size = gguf.GGML_QUANT_SIZES[qtype]
        data = random.integers(0, 256, size=(shape[0], shape[1] // block, size), dtype=np.uint8)
        data[..., 1] &= 0x1F  # the exponent of a float16 at either end of the block
        data[..., 3] &= 0x1F
        data[..., -1] &= 0x1F
        data[..., -3] &= 0x1F
        return data.reshape(shape[0], -1)

    path = write_gguf(kind, sizes=sizes, tensors=gguf_tensors(sizes), raw=raw)
    decoder = load(path)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for part, tensor in decoder.tensors():
        entry = stored[gguf_name(part)]
        expected = torch.from_numpy(gguf.dequantize(entry.data, entry.tensor_type).copy())
        if "attn_q" in entry.name:
            expected = rotary_halves(expected, 4)
        if "attn_k" in entry.name:
            expected = rotary_halves(expected, 2)
        assert torch.equal(tensor, expected), part
        assert tensor.std() > 0
    assert decoder.dtype == torch.float32


def test_permutation_undoes_llama_cpps():
    """llama.cpp's converter splits each head's rows into two halves and interleaves them."""
    heads, head_dim = 3, 10
    rows = torch.randn(heads * head_dim, 4, generator=seeds.generator(1))
    interleaved = rows.reshape(heads, 2, head_dim // 2, 4).swapaxes(1, 2).reshape(rows.shape)
    assert not torch.equal(interleaved, rows)
    assert torch.equal(rotary_halves(interleaved, heads), rows)
    read = torch.empty_like(rows)
    rotary_pairs(read, heads).copy_(interleaved.view(heads, head_dim // 2, 2, 4))
    assert torch.equal(read, rows)


def test_mixed_float_types_become_float32(write_gguf):
    tensors = gguf_tensors(GGUF_SIZES)
    path = write_gguf("F16", tensors={**tensors, "token_embd.weight": tensors["token_embd.weight"].ravel()})
    with pytest.raises(InputError, match=r"token_embd\.weight has shape \[2048\]"):
        load(path)
    path = write_gguf("Q8_0", name="mixed")
    assert load(path).dtype == torch.float32


def test_biases_are_read_and_permuted(write_gguf):
    tensors = gguf_tensors(GGUF_SIZES, biases="q k v output")
    decoder = load(write_gguf(tensors=tensors))
    mha = decoder.blocks[1].mha
    assert torch.equal(mha.q.bias, rotary_halves(torch.from_numpy(tensors["blk.1.attn_q.bias"]), 4))
    assert torch.equal(mha.o.bias, torch.from_numpy(tensors["blk.1.attn_output.bias"]))
    assert decoder.config["attention_bias"] is True


def test_configuration_matches_the_metadata(write_gguf):
    decoder = load(write_gguf(metadata={"add_eos_token_id": 7, "add_bos_token_id": 3}))
    assert decoder.config["rope_parameters"] == {"rope_type": "default", "rope_theta": 12345.0}
    assert (decoder.max_positions, decoder.eps, decoder.eos_token_ids()) == (256, float(np.float32(1e-5)), (7,))
    assert decoder.tokenizer_source is None


def test_frequency_divisors_are_honoured_and_survive_saving(write_gguf, tmp_path, ids):
    divisors = np.array([1, 1, 2, 3, 4, 5, 6, 8], dtype=np.float32)
    plain = load(write_gguf(name="plain")).rope.inv_freq
    decoder = load(write_gguf(tensors={**gguf_tensors(GGUF_SIZES), "rope_freqs.weight": divisors}))
    assert decoder.rope.limit is None
    assert decoder.rope.scaling == 1.0
    torch.testing.assert_close(decoder.rope.inv_freq, plain / torch.from_numpy(divisors), rtol=3e-7, atol=0)
    model = to_transformers(decoder)
    assert torch.equal(model.model.rotary_emb.inv_freq, decoder.rope.inv_freq)
    decoder.save(tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved").rope.inv_freq, decoder.rope.inv_freq)


def test_linear_and_yarn_scaling_are_honoured(write_gguf):
    kinds = gguf.RopeScalingType
    plain = load(write_gguf()).rope.inv_freq
    linear = load(
        write_gguf(metadata={"add_rope_scaling_type": kinds.LINEAR, "add_rope_scaling_factor": 4.0}, name="linear")
    )
    assert torch.equal(linear.rope.inv_freq, plain / 4)
    yarn = load(
        write_gguf(
            metadata={
                "add_rope_scaling_type": kinds.YARN,
                "add_rope_scaling_factor": 4.0,
                "add_rope_scaling_orig_ctx_len": 64,
            },
            name="yarn",
        )
    )
    assert yarn.rope.kind == "yarn"
    assert yarn.rope.scaling == pytest.approx(0.1 * np.log(4) + 1)
    assert yarn.config["rope_parameters"]["original_max_position_embeddings"] == 64


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"add_rope_scaling_type": gguf.RopeScalingType.LONGROPE}, "scaling.type longrope"),
        ({"add_rope_scaling_attn_factors": 1.5}, "rope.scaling.attn_factor"),
        ({"add_expert_count": 8}, "expert_count = 8"),
        ({"add_sliding_window": 64}, "sliding_window"),
        ({"add_rope_dimension_count": 8}, "rope.dimension_count 8"),
    ],
)
def test_metadata_that_would_change_the_model_is_refused(write_gguf, metadata, message):
    if "add_rope_dimension_count" in metadata:
        metadata = {**metadata, "add_key_length": 16}
    with pytest.raises(InputError, match=message):
        load(write_gguf(metadata=metadata))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"add_rope_freq_base": 0.0}, r"m\.gguf: rope_theta is 0\.0; a positive number"),
        ({"add_rope_freq_base": -5.0}, r"m\.gguf: rope_theta is -5\.0"),
        ({"add_layer_norm_rms_eps": -1.0}, r"m\.gguf: rms_norm_eps is -1\.0"),
        ({"add_rope_scaling_type": gguf.RopeScalingType.LINEAR, "add_rope_scaling_factor": -2.0}, "not all positive"),
    ],
)
def test_metadata_that_gives_no_positive_frequencies_or_epsilon_is_refused(write_gguf, metadata, message):
    with pytest.raises(InputError, match=message):
        load(write_gguf(metadata=metadata))


def test_tensor_that_is_not_part_of_a_llama_is_refused(write_gguf):
    extra = {**gguf_tensors(GGUF_SIZES), "blk.0.post_ffw_norm.weight": np.ones(64, dtype=np.float32)}
    with pytest.raises(InputError, match=r"tensor blk\.0\.post_ffw_norm\.weight is not part of the llama"):
        load(write_gguf(tensors=extra))


def test_other_architecture_is_refused_by_name(write_gguf):
    with pytest.raises(InputError, match=r"m\.gguf: GGUF architecture gptneox is not supported; accepted: llama"):
        load(write_gguf(architecture="gptneox"))


def test_missing_tensor_is_named(write_gguf):
    tensors = gguf_tensors(GGUF_SIZES)
    del tensors["blk.1.ffn_up.weight"]
    with pytest.raises(InputError, match=r"m\.gguf: tensor blk\.1\.ffn_up\.weight is missing"):
        load(write_gguf(tensors=tensors))


def test_misshapen_tensor_is_named(write_gguf):
    tensors = gguf_tensors(GGUF_SIZES)
    tensors["blk.1.attn_k.weight"] = tensors["blk.1.attn_k.weight"][:-1]
    with pytest.raises(InputError, match=r"blk\.1\.attn_k\.weight has shape \[31, 64\].*\[32, 64\]"):
        load(write_gguf(tensors=tensors))


def test_nan_is_found_behind_quantisation(write_gguf):
    def raw(shape, qtype):
        data = np.full((shape[0], shape[1] // 32 * 34), 1, dtype=np.uint8)
        if shape == (96, 64):
            data[5, :2] = 255  # a float16 scale that is NaN
        return data

    with pytest.raises(InputError, match=r"tensor blk\.0\.ffn_gate\.weight holds NaN"):
        load(write_gguf("Q8_0", raw=raw))


def test_file_cut_anywhere_is_refused(write_gguf, tmp_path):
    whole = write_gguf("Q4_0", metadata={"add_token_list": [f"token {i}" for i in range(2000)]}).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [0, 3, 11, 200, 5000, len(whole) // 2, len(whole) - 40]:
        cut.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.gguf: not a whole GGUF file") as caught:
            load(cut)
        assert "\n" not in str(caught.value)


def test_other_bytes_are_refused(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(InputError, match="not a whole GGUF file"):
        load(tmp_path / "x.gguf")


@pytest.mark.parametrize("count", [3, 1024, 1025, 3000])
def test_the_header_is_read_as_gguf_reads_it(write_gguf, count):
    """The plain reader is the reference: same keys, same tensors, same values around the arrays stepped over."""
    metadata = {
        "add_token_list": [f"<{'é' * (i % 5)}{i}>" for i in range(count)],
        "add_token_types": [1] * count,
        "add_token_scores": [0.5] * count,
        "add_eos_token_id": 9,
    }
    path = write_gguf(metadata=metadata)
    plain, quick = gguf.GGUFReader(path), GGUFFile(path)
    assert quick.metadata_keys() == [key for key in plain.fields if not key.startswith("GGUF.")]
    assert quick.value("tokenizer.ggml.eos_token_id") == 9
    assert list(quick.tensors) == [tensor.name for tensor in plain.tensors]
    assert all(np.array_equal(quick.read(tensor.name), tensor.data) for tensor in plain.tensors)
    assert quick.value("tokenizer.ggml.tokens") == plain.get_field("tokenizer.ggml.tokens").contents()
    assert quick.value("tokenizer.ggml.token_type") == plain.get_field("tokenizer.ggml.token_type").contents()


def test_absent_gguf_package_is_told(write_gguf, monkeypatch):
    path = write_gguf()
    real = builtins.__import__

    def without_gguf(name, *args, **kwargs):
        if name == "gguf":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_gguf)
    with pytest.raises(InputError, match="pip install gguf"):
        load(path)


def test_per_block_heads_are_refused(write_gguf):
    with pytest.raises(InputError, match="head_count_kv differs between blocks"):
        load(write_gguf(sizes={**GGUF_SIZES, "kv_heads": [2, 4]}, tensors=gguf_tensors(GGUF_SIZES)))
