"""An engine with weights in 12 bits: the same numbers, fewer bytes, and nothing of the old weights kept."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch

from pyprune import Engine, InputError, Pruning, load, plan_memory, score
from pyprune.models.decoder import Decoder
from pyprune.ops.weight_formats import LOSSLESS12
from pyprune.pruning import apply
from pyprune.runtime import memory
from pyprune.runtime.weight_formats import converted
from tests.fresh import run_fresh
from tests.library import without_library

# Rows of few columns would not get smaller: a head and whole groups of 64 take too much of them.
SIZES = "hidden=320,blocks=4,heads=6,kv_heads=2,head_dim=52,ffn=701,vocab=301"
MODELS = [
    f"shape:{SIZES}",
    f"shape:{SIZES},tied=1",
    f"shape:{SIZES},family=qwen2,window=9",
    f"shape:{SIZES},family=qwen3",
]


def model(spec: str) -> Decoder:
    return load(spec, dtype="bf16")


def small_engine(decoder: Decoder, *sizes: int) -> Engine:
    """An engine that has every matrix compressed."""
    engine = Engine(decoder, *sizes, weight_format=LOSSLESS12.name)
    stored = {tensor.dtype for _, tensor in engine._running.tensors() if tensor.dim() == 2}
    assert stored == {torch.uint8}
    return engine


def ids(decoder: Decoder, batch: int, tokens: int) -> torch.Tensor:
    return torch.randint(0, decoder.vocab_size, (batch, tokens))


@pytest.mark.parametrize("spec", MODELS)
def test_logits_and_tokens_have_the_same_bits(spec: str):
    decoder = model(spec)
    plain, small = Engine(decoder, 5, 120), small_engine(decoder, 5, 120)
    for batch, tokens in ((1, 7), (2, 40), (5, 100)):  # few and many rows at a time
        prompt = ids(decoder, batch, tokens)
        mask = torch.ones_like(prompt)
        mask[0, : tokens // 3] = 0
        expected, found = plain.prefill(prompt, mask), small.prefill(prompt, mask)
        assert torch.equal(found, expected)
        for _ in range(3):
            token = expected.argmax(-1)
            expected, found = plain.decode(token), small.decode(token)
            assert torch.equal(found, expected)


def test_skips_and_masks_and_streams_work_as_before():
    decoder = model(MODELS[0])
    plain, small = Engine(decoder, 2, 60), small_engine(decoder, 2, 60)
    prompt, mask = ids(decoder, 2, 20), torch.zeros(4, 2, dtype=torch.bool)
    mask[1] = mask[3, 0] = True
    for skip in (None, [2], {"mha": [0], "ffn": [3]}, mask):
        options = {"max_new_tokens": 12, "skip": skip, "temperature": 0.9, "seed": 3}
        expected = plain.generate(prompt, **options)
        assert torch.equal(small.generate(prompt, **options), expected)
        assert torch.equal(torch.stack(list(small.stream(prompt, **options)), 1), expected)


def test_a_ragged_model_is_the_same():
    decoder = apply(model(MODELS[1]), Pruning(mha=[1], ffn=[2], kv_groups={3: [0]}, neurons={0: list(range(99))}))
    prompt = ids(decoder, 3, 30)
    expected = Engine(decoder, 3, 50).generate(prompt, max_new_tokens=8)
    assert torch.equal(small_engine(decoder, 3, 50).generate(prompt, max_new_tokens=8), expected)


@pytest.mark.slow
def test_the_real_model_writes_the_same_text(smollm2):
    decoder = smollm2.to(torch.bfloat16)
    prompt = torch.tensor([decoder.tokenizer()("The capital of France is").input_ids])
    plain, small = Engine(decoder, 1, 64), small_engine(decoder, 1, 64)
    tokens, logarithms = plain.generate(prompt, max_new_tokens=24, logprobs=True)
    found = small.generate(prompt, max_new_tokens=24, logprobs=True)
    assert torch.equal(found[0], tokens)
    assert torch.equal(found[1], logarithms)
    sizes = [sum(t.nbytes for _, t in one.tensors()) for one in (converted(decoder, LOSSLESS12), decoder)]
    assert 0.75 < sizes[0] / sizes[1] < 0.77
    assert plan_memory(decoder, length=64, weight_format=LOSSLESS12.name).weights == pytest.approx(sizes[0], rel=0.005)


@pytest.mark.parametrize(
    "spec", [*MODELS, "shape:hidden=1016,blocks=2,heads=13,kv_heads=13,head_dim=72,ffn=2777,vocab=5001"]
)
def test_the_plan_knows_what_random_weights_take(spec: str):
    decoder = model(spec)
    found = sum(tensor.nbytes for _, tensor in converted(decoder, LOSSLESS12).tensors())
    assert plan_memory(spec, 1, 50, "bf16", weight_format=LOSSLESS12.name).weights == pytest.approx(found, rel=0.02)


def test_a_matrix_that_would_not_get_smaller_stays_as_it_is():
    decoder = model(f"shape:{SIZES}")
    exponents = torch.randint(-60, 4, decoder.head.weight.shape)
    decoder.head.weight.copy_(torch.randn(exponents.shape).ldexp(exponents))
    running = converted(decoder, LOSSLESS12)
    stored = [name for name, tensor in running.tensors() if tensor.dim() == 2 and tensor.dtype != torch.uint8]
    assert stored == ["head.weight"]
    prompt = ids(decoder, 2, 5)
    assert torch.equal(
        Engine(decoder, 2, 9, weight_format=LOSSLESS12.name).prefill(prompt), Engine(decoder, 2, 9).prefill(prompt)
    )


def test_the_old_weights_are_free_and_the_engines_decoder_has_sizes_alone():
    decoder = model(f"shape:{SIZES},tied=1")
    engine = small_engine(decoder, 1, 20)
    assert (engine.decoder.hidden_size, engine.decoder.dtype, engine.decoder.vocab_size) == (320, torch.bfloat16, 301)
    assert 0.75 < engine.bytes_per_token() / decoder.bytes_per_token() < 0.85
    assert all(tensor.is_meta for _, tensor in engine.decoder.tensors())
    watched = [weakref.ref(tensor.untyped_storage()) for _, tensor in decoder.tensors()]
    prompt = ids(decoder, 1, 5)
    del decoder
    gc.collect()
    assert not any(reference() for reference in watched)
    assert engine.generate(prompt, max_new_tokens=3).shape == (1, 3)


def test_what_has_sizes_alone_neither_runs_nor_is_saved(tmp_path):
    sizes = small_engine(model(f"shape:{SIZES}"), 1, 20).decoder
    uses = [
        lambda: Engine(sizes),
        lambda: Engine(sizes, weight_format=LOSSLESS12.name),
        lambda: sizes.save(tmp_path / "saved"),
        lambda: sizes.save_gguf(tmp_path / "saved.gguf", tokenizer=False),
        lambda: score(sizes, torch.zeros(2, 8, dtype=torch.int64)),
    ]
    for use in uses:
        with pytest.raises(InputError, match="only the sizes of its weights are here; a loaded decoder is expected"):
            use()
    assert not list(tmp_path.iterdir())


def test_weights_that_want_gradients_are_compressed_all_the_same():
    decoder = model(f"shape:{SIZES}").map(lambda tensor: tensor.clone().requires_grad_())
    prompt = ids(decoder, 1, 5)
    assert torch.equal(small_engine(decoder, 1, 9).prefill(prompt), Engine(decoder, 1, 9).prefill(prompt))


def test_the_plan_counts_the_old_weights_while_the_new_ones_are_made():
    decoder = model(f"shape:{SIZES}")
    planned = plan_memory(decoder, 1, 50, weight_format=LOSSLESS12.name)
    old, new = (sum(t.nbytes for _, t in one.tensors()) for one in (decoder, converted(decoder, LOSSLESS12)))
    largest = max(t.nbytes for _, t in converted(decoder, LOSSLESS12).tensors())
    assert planned.making == pytest.approx(old + new + largest, rel=0.02)
    assert planned.most == planned.making > planned.total
    assert plan_memory(decoder, 1, 50).making == 0


def test_an_engine_that_could_not_compress_is_refused_with_the_figure(monkeypatch):
    decoder = model(f"shape:{SIZES}")
    planned = plan_memory(decoder, 1, 20, weight_format=LOSSLESS12.name)
    old = sum(t.nbytes for _, t in decoder.tensors())
    needed = max(planned.making - old, planned.total)
    monkeypatch.setattr(memory, "available", lambda device="cpu": needed - 1)
    with pytest.raises(InputError, match="are needed on cpu"):
        Engine(decoder, 1, 20, weight_format=LOSSLESS12.name)
    monkeypatch.setattr(memory, "available", lambda device="cpu": needed)
    Engine(decoder, 1, 20, weight_format=LOSSLESS12.name)


def test_other_weights_than_bfloat16_are_refused(tiny):
    message = "weight_format bf16-lossless12: .* has float32 weights on cpu; bfloat16 weights on a CPU are accepted"
    with pytest.raises(InputError, match=message):
        Engine(tiny, weight_format=LOSSLESS12.name)
    with pytest.raises(InputError, match="float16 weights on cpu"):
        plan_memory("shape:tiny", dtype="fp16", length=10, weight_format=LOSSLESS12.name)


def test_a_format_is_known_by_its_name_and_the_plain_one_is_the_weights_own(tiny):
    with pytest.raises(InputError, match="weight_format 'int3': one of bf16, bf16-lossless12 is expected"):
        Engine(tiny, weight_format="int3")
    with pytest.raises(InputError, match=r"weight_format bf16: .* has float32 weights on cpu; bfloat16 weights are"):
        Engine(tiny, weight_format="bf16")
    decoder = model(f"shape:{SIZES}")
    assert Engine(decoder, weight_format="bf16").decoder is decoder


def test_compress_is_the_old_name_and_says_so():
    decoder = model(f"shape:{SIZES}")
    planned = plan_memory(decoder, 1, 20, weight_format="bf16-lossless12")
    with pytest.warns(DeprecationWarning, match="compress=True is now weight_format='bf16-lossless12'"):
        assert plan_memory(decoder, 1, 20, compress=True) == planned
    with pytest.warns(DeprecationWarning, match="compress=True"):
        assert plan_memory(decoder, 1, 20, None, None, True) == planned  # its old place
    with pytest.warns(DeprecationWarning, match="compress=True"):
        engine = Engine(decoder, 1, 20, compress=True)
    assert all(tensor.is_meta for _, tensor in engine.decoder.tensors())
    with pytest.warns(DeprecationWarning, match="compress=False is now weight_format=None"):
        assert Engine(decoder, 1, 20, compress=False).decoder is decoder


@pytest.mark.slow
def test_the_reference_implementations_give_the_same_too():
    code = (
        "import json, torch\nfrom pyprune import Engine, load\n"
        f"decoder = load('shape:{SIZES}', dtype='bf16')\nprompt = torch.arange(60).view(2, 30)\n"
        "plain, small = Engine(decoder, 2, 40), Engine(decoder, 2, 40, weight_format='bf16-lossless12')\n"
        "assert {t.dtype for _, t in small._running.tensors() if t.dim() == 2} == {torch.uint8}\n"
        "print(json.dumps([one.generate(prompt, max_new_tokens=4).tolist() for one in (plain, small)]))"
    )
    plain, small = json.loads(run_fresh(code, without_library()))
    assert plain == small
