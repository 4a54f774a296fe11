"""GGUF files of Qwen2 and Qwen3, against transformers' loader."""

from __future__ import annotations

import gguf
import pytest
import torch
from gguf_samples import GGUF_SIZES, gguf_tensors

from pyprune.errors import InputError
from pyprune.models import load, to_transformers
from pyprune.models.load import load_sizes
from pyprune.models.names import gguf_name, hf_name

WIDE_HEADS = {**GGUF_SIZES, "head_dim": 128}  # the size that transformers takes for granted in Qwen3 files
SAMPLES = {
    "qwen2": (GGUF_SIZES, {"biases": "q k v"}, {}),
    "qwen3": (WIDE_HEADS, {"qk_norm": True}, {"add_key_length": 128, "add_value_length": 128}),
}


@pytest.fixture
def write(write_gguf):
    """Write the sample of an architecture; the tensors to be added to or left out of it."""

    def make(architecture, kind="F32", *, more=lambda writer: None, metadata=(), **changes):
        sizes, own, sized = SAMPLES[architecture]
        tensors = gguf_tensors(sizes, **{**own, **changes})
        return write_gguf(
            kind,
            architecture=architecture,
            sizes=sizes,
            tensors=tensors,
            metadata={**sized, **dict(metadata)},
            more=more,
        )

    return make


def theirs(path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0"])
@pytest.mark.parametrize("architecture", SAMPLES)
def test_weights_and_logits_are_bit_equal_to_transformers(write, ids, architecture, kind, tied):
    path = write(architecture, kind, tied=tied)
    decoder, reference = load(path, dtype="f32"), theirs(path)
    state = reference.state_dict()
    assert decoder.config["model_type"] == reference.config.model_type == architecture
    assert {hf_name(part) for part, _ in decoder.tensors()} == set(state) - ({"lm_head.weight"} if tied else set())
    assert all(torch.equal(tensor, state[hf_name(part)]) for part, tensor in decoder.tensors())
    with torch.no_grad():
        assert torch.equal(to_transformers(decoder)(ids).logits, reference(ids).logits)


@pytest.mark.parametrize("architecture", SAMPLES)
def test_rows_of_q_and_k_stay_in_the_order_of_the_file(write, architecture):
    """llama.cpp's converter interleaves those of a Llama only."""
    stored = gguf_tensors(SAMPLES[architecture][0], **SAMPLES[architecture][1])
    for part, tensor in load(write(architecture)).tensors():
        assert torch.equal(tensor, torch.from_numpy(stored[gguf_name(part)])), part


@pytest.mark.parametrize("architecture", SAMPLES)
def test_sizes_are_known_without_weights(write, architecture):
    path = write(architecture)
    assert [(n, t.shape) for n, t in load_sizes(path).tensors()] == [(n, t.shape) for n, t in load(path).tensors()]


@pytest.mark.parametrize("architecture", SAMPLES)
def test_a_file_can_be_saved_for_plain_transformers(write, tmp_path, ids, architecture):
    from transformers import AutoModelForCausalLM

    decoder = load(write(architecture))
    decoder.save(tmp_path / "saved")
    with torch.no_grad():
        read = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")(ids).logits
        assert torch.equal(read, to_transformers(decoder)(ids).logits)


def test_qwen3_with_biases_on_all_of_the_attention_is_read(write):
    decoder = load(write("qwen3", biases="q k v output"))
    assert decoder.config["attention_bias"] is True
    assert decoder.blocks[1].mha.o.bias.shape == (64,)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("qwen2", {"biases": ""}, r"m\.gguf: no biases, no q/k-norm: a plain qwen2 has biases on q, k, v"),
        ("qwen2", {"biases": "q k v output"}, "biases on q k v o, no q/k-norm: a plain qwen2"),
        ("qwen2", {"qk_norm": True}, "biases on q k v, q/k-norm: a plain qwen2"),
        ("qwen3", {"qk_norm": False}, "no biases, no q/k-norm: a plain qwen3 has q/k-norm"),
        ("qwen3", {"biases": "q"}, "biases on q, q/k-norm: a plain qwen3"),
        ("qwen2", {"metadata": {"add_sliding_window": 8}}, r"qwen2\.attention\.sliding_window = 8 is not supported"),
    ],
)
def test_what_a_family_does_not_have_is_refused(write, architecture, changes, message):
    with pytest.raises(InputError, match=message):
        load(write(architecture, **changes))


def test_other_architectures_are_refused_with_those_accepted(write_gguf):
    with pytest.raises(InputError, match="architecture qwen2moe is not supported; accepted: llama, deci, qwen2, qwen3"):
        load(write_gguf(architecture="qwen2moe"))


@pytest.mark.parametrize("architecture", SAMPLES)
def test_yarn_as_qwen_files_state_it(write, architecture):
    path = write(
        architecture,
        metadata={
            "add_rope_scaling_type": gguf.RopeScalingType.YARN,
            "add_rope_scaling_factor": 4.0,
            "add_rope_scaling_orig_ctx_len": 64,
        },
    )
    rope = load(path).rope
    assert (rope.kind, rope.limit) == ("yarn", None)
    assert rope.scaling == pytest.approx(1.1386294)  # 0.1 ln 4 + 1


@pytest.mark.parametrize("architecture", SAMPLES)
def test_a_byte_level_tokenizer_in_the_file(write, tmp_path, architecture):
    words = ["h", "e", "l", "o", "Ġ", "he", "ll", "hell", "hello", "Ġhello", "<|endoftext|>"]
    tokens = words + [f"[PAD{i}]" for i in range(len(words), 32)]

    def vocabulary(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(tokens)
        normal, control, unused = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
        writer.add_token_types([normal] * 10 + [control] + [unused] * 21)
        writer.add_token_merges(["h e", "l l", "he ll", "hell o", "Ġ hello"])
        writer.add_eos_token_id(10)
        writer.add_pad_token_id(10)

    decoder = load(write(architecture, more=vocabulary))
    assert decoder.eos_token_ids() == (10,)
    tokenizer = decoder.tokenizer()
    assert tokenizer("hello hello")["input_ids"] == [8, 9]
    decoder.save(tmp_path / "saved")
    assert load(tmp_path / "saved").tokenizer()("hello hello")["input_ids"] == [8, 9]
