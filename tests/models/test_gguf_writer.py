"""GGUF files: every bit of a decoder there and back, what llama.cpp makes of them, and what cannot be expressed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf_llama_cpp import llama_tokens
from gguf_samples import rotary_halves
from ragged_samples import MODELS, variants

from bench.peers.llama_cpp import LlamaDecoding
from pyprune.errors import InputError
from pyprune.models import load, to_transformers
from pyprune.models.gguf_rope import rotary_neighbours
from pyprune.pruning import Pruning, apply

IDS = torch.arange(26).view(2, 13) * 17 % 61
PLAIN = {name: (kind, own) for name, (kind, own) in MODELS.items() if "window" not in name}
PLAIN |= {name: (name, {"num_hidden_layers": 4}) for name in ("qwen2", "qwen3")}
"""Those whose attention sees everything."""


@pytest.fixture
def decoder_of(random_model):
    def make(name, **changes):
        model_type, own = PLAIN[name]
        return load(random_model(model_type, **{**own, **changes}))

    return make


def same(one, other):
    ours, theirs = dict(one.tensors()), dict(other.tensors())
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_file_holds_every_bit(decoder_of, tmp_path, written, dtype, tied):
    decoder = decoder_of("llama", dtype=dtype, tie_word_embeddings=tied, rms_norm_eps=3e-5)
    file = written(decoder)
    read = load(tmp_path / "model.gguf")
    assert read.dtype == dtype
    assert (read.tied, read.eps, read.max_positions) == (tied, pytest.approx(3e-5), 128)
    assert torch.equal(read.rope.inv_freq, decoder.rope.inv_freq)
    assert same(read, decoder)
    kinds = {tensor.type.name for tensor in file.tensors.values() if tensor.name.endswith("norm.weight")}
    assert kinds == {"F32"}


OWN = {"llama": "llama", "llama with biases": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
UNIFORM = ["depth", "width", "padded"]


@pytest.mark.parametrize("family", OWN)
def test_blocks_that_are_alike_keep_their_architecture(decoder_of, written, tmp_path, family):
    made = variants(decoder_of(family))
    for name in ["original", *UNIFORM]:
        decoder = made.get(name) or decoder_of(family)
        # llama.cpp's qwen2 wants heads that make up the hidden size: 6 of 10 are not 48.
        expected = "deci" if family == "qwen2" else OWN[family]
        assert written(decoder).value("general.architecture") == expected, name
        assert same(load(tmp_path / "model.gguf"), decoder), name


def test_a_qwen2_whose_heads_make_up_the_hidden_size_stays_one(decoder_of, written, tmp_path):
    decoder = decoder_of("qwen2", head_dim=8)
    assert written(decoder).value("general.architecture") == "qwen2"
    assert same(load(tmp_path / "model.gguf"), decoder)


RAGGED = ["attention of the first", "halves", "no attention at all", "ragged", "composed", "biases", "ragged, padded"]


@pytest.mark.parametrize("name", RAGGED)
@pytest.mark.parametrize("family", ["llama", "llama with biases", "mistral", "qwen2"])
def test_blocks_that_differ_are_read_back_from_deci(decoder_of, written, tmp_path, family, name):
    decoder = variants(decoder_of(family))[name]
    file = written(decoder)
    assert file.value("general.architecture") == "deci"
    again = load(tmp_path / "model.gguf")
    assert same(again, decoder)
    for ours, theirs in zip(again.blocks, decoder.blocks, strict=True):
        assert (ours.mha is None, ours.ffn is None) == (theirs.mha is None, theirs.ffn is None)
    again.save(tmp_path / "saved")
    assert same(load(tmp_path / "saved"), decoder)


def test_what_llama_cpp_cannot_leave_out_is_written_as_zeros(decoder_of, written):
    decoder = apply(decoder_of("llama"), Pruning(mha=[0, 2], ffn=[1, 3], kv_groups={3: [0]}))
    file = written(decoder)
    assert file.value("deci.attention.head_count") == [1, 6, 0, 3]
    assert file.value("deci.attention.head_count_kv") == [1, 2, 0, 1]
    assert file.value("deci.feed_forward_length") == [37, 1, 37, 1]
    zeros = {name for name in file.tensors if not file.read(name).any()}
    attention = {f"blk.0.attn_{part}.weight" for part in ("q", "k", "v", "output")}
    assert zeros == attention | {f"blk.{i}.ffn_{part}.weight" for i in (1, 3) for part in ("gate", "up", "down")}
    assert not any(name.startswith("blk.2.attn") for name in file.tensors)


def test_uniform_biases_of_flap_need_no_deci(decoder_of, written, tmp_path):
    decoder = decoder_of("llama")
    bias, blocks = torch.linspace(-1, 1, 48), []
    for block in decoder.blocks:
        mha = replace(block.mha, o=replace(block.mha.o, bias=bias))
        blocks.append(replace(block, mha=mha, ffn=replace(block.ffn, down=replace(block.ffn.down, bias=bias))))
    decoder = replace(decoder, blocks=tuple(blocks))
    assert written(decoder).value("general.architecture") == "llama"
    assert same(load(tmp_path / "model.gguf"), decoder)


@pytest.mark.parametrize(("dtype", "stored"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_matrices_take_another_dtype_and_vectors_stay_float32(decoder_of, written, tmp_path, dtype, stored):
    decoder = variants(decoder_of("llama"))["biases"]
    file = written(decoder, dtype=dtype)
    assert {t.type.name for t in file.tensors.values() if len(t.shape) > 1} == {dtype.upper()}
    vectors = {name: tensor for name, tensor in decoder.tensors() if tensor.ndim == 1}
    read = dict(load(tmp_path / "model.gguf", dtype=torch.float32).tensors())
    assert all(torch.equal(read[name], tensor) for name, tensor in vectors.items())
    assert same(load(tmp_path / "model.gguf"), decoder.to(stored))


def test_rows_that_rotate_become_neighbours_and_go_back():
    rows = torch.arange(3 * 10 * 2).view(30, 2)
    assert rotary_neighbours(rows, 3)[:4].tolist() == [rows[i].tolist() for i in (0, 5, 1, 6)]
    assert torch.equal(rotary_halves(rotary_neighbours(rows, 3), 3), rows)


# --- RoPE -----------------------------------------------------------------------------------------------------------

ROPES = {
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 8.0, "original_max_position_embeddings": 16},
    "llama3": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {"rope_type": "longrope", "rope_theta": 500.0, "factor": 1.0, "attention_factor": 1.0,
                 "short_factor": [1.0, 1.5, 2.0, 3.0, 4.0], "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0],
                 "original_max_position_embeddings": 128},
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_rope_comes_back(decoder_of, written, tmp_path, family, kind):
    decoder = decoder_of(family, rope_parameters=ROPES[kind], head_dim=10 if kind == "longrope" else 8)
    file = written(decoder)
    divided = kind in ("llama3", "longrope")
    assert ("rope_freqs.weight" in file.tensors) is divided
    if family == "qwen2":  # whose own architecture has no divisors
        assert file.value("general.architecture") == ("deci" if divided else "qwen2")
    again = load(tmp_path / "model.gguf")
    torch.testing.assert_close(again.rope.inv_freq, decoder.rope.inv_freq, rtol=1e-6, atol=0)  # 8 roundings of float32
    assert again.rope.scaling == decoder.rope.scaling
    assert same(again, decoder)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("linear", {"rope_type": "dynamic"}, "RoPE of kind dynamic: its frequencies depend on the length"),
        ("longrope", {"long_factor": [2.0] * 5}, "RoPE of kind longrope: its frequencies depend on the length"),
        ("longrope", {"attention_factor": 1.5}, "RoPE of kind longrope with an attention factor of 1.5"),
        ("yarn", {"attention_factor": 1.5}, "RoPE of kind yarn with attention_factor 1.5"),
        ("yarn", {"beta_fast": 16}, "RoPE of kind yarn with beta_fast 16"),
    ],
)
def test_rope_that_llama_cpp_does_not_have_is_refused(decoder_of, tmp_path, kind, changes, message):
    decoder = decoder_of("llama", rope_parameters={**ROPES[kind], **changes})
    with pytest.raises(InputError, match=message):
        decoder.save_gguf(tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "name"), [("mistral with a window", "depth"), ("qwen2 with windows", "ragged"),
                         ("qwen3 with windows", "width")]
)  # fmt: skip
def test_windows_are_refused(random_model, tmp_path, family, name):
    model_type, own = MODELS[family]
    decoder = variants(load(random_model(model_type, **own)))[name]
    with pytest.raises(InputError, match="attends within a window of 5 of 128 positions"):
        decoder.save_gguf(tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_a_window_that_no_sequence_passes_is_none(random_model, tmp_path):
    decoder = load(random_model("mistral", sliding_window=128))
    decoder.save_gguf(tmp_path / "model.gguf")
    assert same(load(tmp_path / "model.gguf"), decoder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("halves", "not as qwen3: not uniform: block 0 has no FFN; not as deci: block 0 has q/k-norm"),
        ("ragged", "not as qwen3: not uniform: block 1 has heads 6, block 0 has 3; not as deci: block 0 has q/k-norm"),
    ],
)
def test_a_qwen3_whose_blocks_differ_is_refused_with_both_reasons(decoder_of, tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        variants(decoder_of("qwen3"))[name].save_gguf(tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_a_qwen3_with_a_bias_on_o_is_refused(decoder_of, tmp_path):
    with pytest.raises(InputError, match="not as qwen3: block 0 has biases on o"):
        decoder_of("qwen3", attention_bias=True).save_gguf(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: replace(d, head=replace(d.head, bias=torch.ones(61))), "a bias on the LM head"),
        (lambda d: replace(d, blocks=()), "without blocks"),
    ],
)
def test_other_things_that_no_file_holds(decoder_of, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        change(decoder_of("llama")).save_gguf(tmp_path / "model.gguf")


def test_a_value_beyond_float16_is_named_and_the_old_file_stays(decoder_of, tmp_path):
    decoder = decoder_of("llama")
    decoder.blocks[1].ffn.up.weight[3, 4] = 1e5
    (tmp_path / "model.gguf").write_bytes(b"old")
    with pytest.raises(InputError, match=r"tensor blk\.1\.ffn_up\.weight does not fit float16"):
        decoder.save_gguf(tmp_path / "model.gguf", dtype="f16")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def deci(writer, heads, kv_heads, widths):
    for key, value in (("attention.head_count", heads), ("attention.head_count_kv", kv_heads),
                       ("feed_forward_length", widths)):  # fmt: skip
        writer.add_array(f"deci.{key}", value)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (([4, 4], [2, 0], [96, 96]), "block 1: 4 heads and no KV heads"),
        (([4, 4], [2, 2], [96, 0]), "block 1: attention without an FFN"),
        (([4, 4], [2, 3], [96, 96]), "4 heads are not a multiple of 3|4 is not a multiple of"),
        (([4], [2, 2], [96, 96]), "head_count has 1 numbers; one a block"),
    ],
)
def test_blocks_of_deci_that_a_decoder_has_not_are_refused(write_gguf, counts, message):
    with pytest.raises(InputError, match=message):
        load(write_gguf(architecture="deci", more=lambda writer: deci(writer, *counts)))


# --- what llama.cpp computes ----------------------------------------------------------------------------------------


def compared(path, decoder, ids=IDS, steps=6):
    """llama.cpp's and our own largest distance from float64's logits, and whether both decode the same tokens."""
    model, exact = to_transformers(decoder), to_transformers(decoder.to(torch.float32)).double()
    exact.model.rotary_emb.float()
    decoding = LlamaDecoding(path, len(ids), 32, exact=True)
    try:
        decoding.prefill(ids)
        theirs = torch.from_numpy(decoding.logits(len(ids)).astype(np.float64))
        tokens = decoding.decode(steps)
    finally:
        decoding.close()
    with torch.no_grad():
        wanted = exact(ids).logits[:, -1]
        own = model(ids).logits[:, -1].double()
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps + 1, do_sample=False,
                           pad_token_id=0, eos_token_id=None)[:, ids.shape[1] + 1 :]  # fmt: skip
    return float((theirs - wanted).abs().max()), float((own - wanted).abs().max()), torch.equal(tokens, found)


@pytest.mark.parametrize("family", PLAIN)
def test_llama_cpp_computes_the_same(decoder_of, tmp_path, llama_cpp, family):
    """Float32 with a float32 cache, as near to float64 as plain PyTorch to within a factor of four (it sums in another
    order; the two errors are single draws)."""
    decoder = decoder_of(family)
    made_of = {"original": decoder, **variants(decoder)}
    names = ["original", "width", "no attention at all"]
    for name in names if family == "qwen3" else [*names, "halves", "composed", "biases"]:
        made = made_of[name]
        made.save_gguf(tmp_path / "model.gguf")
        theirs, own, same_tokens = compared(tmp_path / "model.gguf", made)
        assert theirs <= 4 * own + 1e-5, name
        assert same_tokens, name


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_llama_cpp_rotates_the_same(decoder_of, tmp_path, llama_cpp, family, kind):
    decoder = decoder_of(family, rope_parameters=ROPES[kind])
    for made in (decoder, variants(decoder)["composed"]):
        made.save_gguf(tmp_path / "model.gguf")
        theirs, own, same_tokens = compared(tmp_path / "model.gguf", made)
        assert theirs <= 4 * own + 1e-4
        assert same_tokens


@pytest.mark.real_model
def test_llama_cpp_runs_a_pruned_smollm2(smollm2, tmp_path, llama_cpp):
    pruning = Pruning(mha=[0, 17], ffn=[29], kv_groups={4: [1]}, neurons={9: list(range(400)), 12: [3]})
    decoder = apply(smollm2, pruning)
    decoder.save_gguf(tmp_path / "model.gguf")
    text = "The capital of France is Paris, and 1234 is a number."
    tokens = torch.tensor([llama_tokens(llama_cpp, tmp_path / "model.gguf", text)])
    theirs, own, same_tokens = compared(tmp_path / "model.gguf", decoder, tokens)
    assert theirs <= 4 * own + 1e-5
    assert same_tokens
