"""The engine against Hugging Face: the same weights, and the model with the skipped parts removed as the reference."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pyprune import Decoder, Engine, InputError, Pruning, TransformersDecoder, apply, load, to_transformers
from pyprune.runtime import engine as module
from pyprune.runtime.engine import MAX_BATCH
from tests import seeds
from tests.judge import assert_as_near_as

SKIPS = [None, {"blocks": [1, 3]}, {"mha": [0, 2], "ffn": [4]}, {"blocks": [0, 4], "mha": [2]}]


def ids(batch: int, tokens: int, vocab: int = 131, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, vocab, (batch, tokens), generator=seeds.generator(seed))


def reference(decoder: Decoder, skip: dict | None) -> torch.nn.Module:
    return to_transformers(decoder if skip is None else apply(decoder, Pruning.from_skip(skip)))


def greedy(model: torch.nn.Module, prompt: torch.Tensor, new: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    mask = torch.ones_like(prompt) if mask is None else mask
    out = model.generate(prompt, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False)
    return out[:, prompt.shape[1] :]


@pytest.mark.parametrize("skip", SKIPS, ids=str)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (3, 12), (2, 40)])
def test_logits_equal_hugging_face_at_every_step(tiny, skip: dict | None, batch: int, tokens: int):
    model = reference(tiny, skip)
    engine = Engine(tiny, max_batch=batch, max_len=tokens + 8)
    sequence = ids(batch, tokens + 8)
    logits = [engine.prefill(sequence[:, :tokens], skip=skip)]
    logits += [engine.decode(sequence[:, tokens + step]) for step in range(8)]
    assert_as_near_as(torch.stack(logits, dim=1), model, lambda model: model(sequence).logits[:, tokens - 1 :])


@pytest.mark.parametrize("skip", SKIPS, ids=str)
def test_greedy_tokens_equal_hugging_face(tiny, skip: dict | None):
    prompt = ids(2, 9)
    engine = Engine(tiny, max_batch=4, max_len=64)
    assert torch.equal(engine.generate(prompt, max_new_tokens=30, skip=skip), greedy(reference(tiny, skip), prompt, 30))


def test_one_engine_serves_one_mask_after_another(tiny):
    engine, prompt = Engine(tiny, max_len=32), ids(1, 7)
    first = engine.generate(prompt, max_new_tokens=10)
    assert not torch.equal(engine.generate(prompt, max_new_tokens=10, skip=[2, 3]), first)
    assert torch.equal(engine.generate(prompt, max_new_tokens=10), first)


def test_a_pruned_decoder_is_skipped_in_original_indices(tiny):
    prompt = ids(1, 7)
    pruned = apply(tiny, Pruning(blocks=[1]))
    both = Engine(tiny, max_len=32).generate(prompt, max_new_tokens=10, skip=[1, 3])
    assert torch.equal(Engine(pruned, max_len=32).generate(prompt, max_new_tokens=10, skip=[3]), both)


@pytest.mark.parametrize("longest", [11, 30])  # few and many tokens attend in different ways
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(tiny, side: str, longest: int):
    lengths = [3, longest, 7]
    rows = [ids(1, n, seed=n)[0] for n in lengths]
    # A padding id outside the vocabulary is as good as any: the mask says that it is not a token.
    prompt, mask = torch.full((3, longest), -1), torch.zeros(3, longest, dtype=torch.long)
    for b, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        prompt[b, place], mask[b, place] = row, 1
    engine = Engine(tiny, max_batch=3, max_len=50)
    together = engine.generate(prompt, mask, max_new_tokens=12)
    assert engine.lengths.tolist() == [n + 11 for n in lengths]
    for b, row in enumerate(rows):
        assert torch.equal(together[b : b + 1], engine.generate(row[None], max_new_tokens=12))
    if side == "left":
        assert torch.equal(together, greedy(to_transformers(tiny), prompt.clamp(min=0), 12, mask))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_as_near_to_float32_as_hugging_face(tiny, dtype: torch.dtype):
    low = tiny.to(dtype)
    sequence = ids(2, 20)
    engine = Engine(low, max_batch=2, max_len=20)
    engine.prefill(sequence[:, :-1])
    ours = engine.decode(sequence[:, -1])
    assert_as_near_as(ours, to_transformers(low), lambda model: model(sequence).logits[:, -1])


def test_biases_and_tied_heads_run_too():
    decoder = load("shape:hidden=32,blocks=2,heads=4,kv_heads=2,head_dim=8,ffn=33,vocab=60,tied=1")
    mha = decoder.blocks[0].mha
    biased = dataclasses.replace(
        mha,
        **{n: dataclasses.replace(getattr(mha, n), bias=torch.randn(getattr(mha, n).weight.shape[0])) for n in "qkvo"},
    )
    ffn = decoder.blocks[0].ffn
    biased_ffn = dataclasses.replace(
        ffn,
        **{
            n: dataclasses.replace(getattr(ffn, n), bias=torch.randn(getattr(ffn, n).weight.shape[0]))
            for n in ("gate", "up", "down")
        },
    )
    blocks = tuple(dataclasses.replace(b, mha=biased, ffn=biased_ffn) for b in decoder.blocks)
    config = {**decoder.config, "attention_bias": True, "mlp_bias": True}
    decoder = dataclasses.replace(decoder, blocks=blocks, config=config)
    prompt = ids(2, 6, 60)
    expected = greedy(to_transformers(decoder), prompt, 12)
    assert torch.equal(Engine(decoder, max_batch=2, max_len=20).generate(prompt, max_new_tokens=12), expected)


def test_after_a_sequence_ends_comes_padding_and_the_batch_stops_with_the_last(tiny):
    engine, prompt = Engine(tiny, max_batch=2, max_len=40), ids(2, 5)
    free = engine.generate(prompt, max_new_tokens=20)
    stop = int(free[0, 3])
    where = [(row == stop).nonzero()[:1].flatten().tolist() for row in free]
    out = engine.generate(prompt, max_new_tokens=20, eos_token_id=stop)
    for b in range(2):
        end = where[b][0] if where[b] else 19
        assert torch.equal(out[b, : end + 1], free[b, : end + 1])
        assert (out[b, end + 1 :] == tiny.pad_token_id()).all()
    assert out.shape[1] == max((w[0] if w else 19) for w in where) + 1


def test_a_seed_reproduces_and_another_one_does_not(tiny):
    engine, prompt = Engine(tiny, max_batch=2, max_len=40), ids(2, 5)
    draw = [engine.generate(prompt, max_new_tokens=20, temperature=1.0, seed=s) for s in (7, 7, 8)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


@pytest.mark.parametrize(("batch", "skip"), [(65, None), (MAX_BATCH, SKIPS[-1])], ids=str)
def test_logits_equal_hugging_face_beyond_the_rows_of_one_step(tiny, batch: int, skip: dict | None):
    engine, sequence = Engine(tiny, max_batch=batch, max_len=9), ids(batch, 9)
    logits = [engine.prefill(sequence[:, :5], skip=skip)]
    logits += [engine.decode(sequence[:, 5 + step]) for step in range(4)]
    assert_as_near_as(torch.stack(logits, dim=1), reference(tiny, skip), lambda model: model(sequence).logits[:, 4:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_batch_gives_the_tokens_of_each_prompt_alone(tiny, dtype):
    """Prompts of different lengths, ends, and blocks left out, at every place of the batch."""
    decoder, prompt = tiny.to(dtype), ids(MAX_BATCH, 4)
    mask = torch.ones_like(prompt)
    mask[1::3, :2] = 0
    skip = {"blocks": [1], "ffn": [3]}
    # 64 prompt tokens at a time: then a prompt has the same bits in every batch, whatever multiplies many rows.
    together = Engine(decoder, max_batch=MAX_BATCH, max_len=9, prefill_chunk=64)
    end = int(together.generate(prompt[:1], mask[:1], skip=skip, max_new_tokens=3)[0, 2])
    options = {"skip": skip, "max_new_tokens": 5, "eos_token_id": end}
    tokens = together.generate(prompt, mask, **options)
    alone = Engine(decoder, max_len=9, prefill_chunk=64)
    for row in (0, 1, 63, 64, 127, 128, 191, 200, MAX_BATCH - 1):
        expected = alone.generate(prompt[row : row + 1], mask[row : row + 1], **options)[0]
        assert torch.equal(tokens[row, : len(expected)], expected), row


def test_any_batch_up_to_the_largest_may_follow_another(tiny):
    engine, prompt = Engine(tiny, max_batch=130, max_len=9, prefill_chunk=64), ids(130, 4)
    expected = engine.generate(prompt, max_new_tokens=5)
    for batch in (1, 64, 65, 129, 130):
        assert torch.equal(engine.generate(prompt[:batch], max_new_tokens=5), expected[:batch]), batch


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (dict(max_batch=0), "max_batch: 0"),
        (dict(max_batch=257), "max_batch: 257"),
        (dict(max_len=0), "max_len: 0"),
        (dict(prefill_chunk=0), "prefill_chunk: 0"),
        (dict(max_batch=1.5), "max_batch: 1.5 given; a whole number"),
        (dict(max_len="9"), "max_len: '9' given; a whole number"),
        (dict(prefill_chunk=True), "prefill_chunk: True given; a whole number"),
    ],
)
def test_sizes_out_of_range_are_refused(tiny, make: dict, message: str):
    with pytest.raises(InputError, match=message):
        Engine(tiny, **make)


def test_only_a_decoder_is_accepted(tiny, tmp_path):
    model = to_transformers(tiny)
    for given, what in (
        ("shape:tiny", "'shape:tiny'"),
        (tmp_path, repr(tmp_path)),
        (model, "a LlamaForCausalLM"),
        (TransformersDecoder.of(model), "a TransformersDecoder"),
    ):
        with pytest.raises(InputError) as error:
            Engine(given)
        assert str(error.value) == f"decoder: {what} given; a Decoder, as pyprune.load gives it, is accepted"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(input_ids=torch.tensor([[131]])), "token id 131 given; 0 to 130"),
        (dict(input_ids=torch.tensor([[-1]])), "token id -1"),
        (dict(input_ids=torch.zeros(1, 0, dtype=torch.long)), "input_ids"),
        (dict(input_ids=torch.zeros(3, dtype=torch.long)), "input_ids"),
        (dict(input_ids=torch.zeros(1, 3)), "input_ids: torch.float32"),
        (dict(input_ids=torch.ones(3, 4, dtype=torch.long)), "a batch of 3 given; up to 2"),
        (dict(input_ids=torch.ones(1, 4, dtype=torch.long), max_new_tokens=18), "21 tokens needed .* up to 20"),
        (dict(input_ids=torch.ones(1, 4, dtype=torch.long), max_new_tokens=0), "max_new_tokens: 0"),
        (dict(input_ids=torch.ones(1, 4, dtype=torch.long), max_new_tokens=2.5), "max_new_tokens: 2.5"),
        (dict(input_ids=torch.ones(2, 4, dtype=torch.long), max_new_tokens=[3, 0]), "max_new_tokens: 0"),
        (dict(input_ids=torch.ones(2, 4, dtype=torch.long), max_new_tokens=[3]), r"max_new_tokens: 1 numbers .* 2"),
        (dict(input_ids=torch.ones(2, 4, dtype=torch.long), max_new_tokens=[3, 18]), "21 tokens needed .* up to 20"),
        (dict(input_ids=torch.ones(1, 4, dtype=torch.long), eos_token_id=1.5), "eos_token_id: 1.5"),
        (dict(input_ids=torch.ones(1, 4, dtype=torch.long), eos_token_id="2"), "eos_token_id: '2'"),
        (dict(input_ids=torch.ones(1, 4, dtype=torch.long), eos_token_id=[1, "x"]), "eos_token_id: 'x'"),
        (dict(input_ids=torch.ones(2, 4, dtype=torch.long), eos_token_id=[1, [2]]), r"eos_token_id: \[2\]"),
        (dict(input_ids=torch.ones(2, 4, dtype=torch.long), eos_token_id=[[1]]), "eos_token_id: lists for 1 .* 2"),
        (dict(input_ids=torch.ones(1, 4, dtype=torch.long), repetition_penalty=0.0), "repetition_penalty: 0.0"),
        (dict(input_ids=torch.ones(1, 4, dtype=torch.long), temperature=1.0, seed=-1), "seed: -1"),
        (dict(input_ids=torch.ones(1, 4, dtype=torch.long), skip=[7]), "block 7"),
        (dict(input_ids=torch.ones(1, 4, dtype=torch.long), skip=torch.zeros(4, 2)), "skip: .* whole numbers"),
        (dict(input_ids=torch.ones(1, 4, dtype=torch.long), skip=torch.tensor([1.0])), "skip: .* whole numbers"),
        (dict(input_ids=torch.ones(1, 4, dtype=torch.long), temperature="1"), "temperature: '1'"),
        (dict(input_ids=torch.ones(1, 4, dtype=torch.long), temperature=1.0, seed=1.5), "seed: 1.5"),
        (dict(input_ids=[[1, 2]]), "input_ids: a list given; a tensor"),
        (dict(input_ids=torch.ones(1, 2, dtype=torch.long), attention_mask=[[1, 1]]), "attention_mask: a list given"),
        (dict(input_ids=torch.ones(1, 2, dtype=torch.long), attention_mask=torch.tensor([[0.0, -1e9]])), "mask: -1"),
        (dict(input_ids=torch.ones(1, 4, dtype=torch.long), temperature=-1.0), "temperature"),
        (dict(input_ids=torch.ones(1, 4, dtype=torch.long), attention_mask=torch.ones(1, 3)), "attention_mask: shape"),
        (dict(input_ids=torch.ones(1, 4, dtype=torch.long), attention_mask=torch.zeros(1, 4)), "all padding"),
        (
            dict(input_ids=torch.ones(1, 4, dtype=torch.long), attention_mask=torch.tensor([[1, 0, 1, 1]])),
            "row 0 has a gap",
        ),
    ],
)
def test_bad_input_is_refused_with_its_value(tiny, call: dict, message: str):
    engine = Engine(tiny, max_batch=2, max_len=20)
    with pytest.raises(InputError, match=message):
        engine.generate(**{"max_new_tokens": 4, **call})


def test_decoding_past_the_cache_or_without_a_prompt_is_refused(tiny):
    engine = Engine(tiny, max_len=4)
    with pytest.raises(InputError, match="tokens: shape"):
        engine.decode(torch.tensor([1]))
    engine.prefill(ids(1, 4))
    with pytest.raises(InputError, match="the cache is full: 4 tokens"):
        engine.decode(torch.tensor([1]))


def test_a_prefill_that_fails_leaves_no_batch_to_go_on_with(tiny, monkeypatch):
    engine = Engine(tiny, max_len=10)
    engine.prefill(ids(1, 4))
    with monkeypatch.context() as patch:
        patch.setattr(module.ops, "linear_residual", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            engine.prefill(ids(1, 5))
    with pytest.raises(InputError, match="tokens: shape"):
        engine.decode(torch.tensor([1]))


def test_ids_may_be_of_any_integer_type(tiny):
    engine = Engine(tiny, max_len=20)
    expected = engine.generate(ids(1, 5), max_new_tokens=5)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(engine.generate(ids(1, 5).to(dtype), max_new_tokens=5), expected)
    decoded = []
    for dtype in (torch.int64, torch.int32):
        engine.prefill(ids(1, 5))
        decoded.append(engine.decode(torch.tensor([3], dtype=dtype)))
    assert torch.equal(*decoded)


def test_a_token_outside_the_vocabulary_is_not_decoded(tiny):
    engine = Engine(tiny, max_len=20)
    engine.prefill(ids(1, 4))
    for bad, message in (
        (torch.tensor([131]), "tokens: token id 131"),
        (torch.tensor([1.0]), r"tokens: torch.float32 \[1\] given; integers \[batch\]"),
        ([1], "tokens: a list given; a tensor"),
    ):
        with pytest.raises(InputError, match=message):
            engine.decode(bad)


@pytest.mark.real_model
@pytest.mark.parametrize("skip", [None, {"blocks": [5, 14], "mha": [4], "ffn": [17]}], ids=str)
def test_smollm2_gives_hugging_face_tokens_for_24_steps_and_its_logits(smollm2, skip: dict | None):
    prompt = smollm2.tokenizer()("The history of the bicycle begins", return_tensors="pt").input_ids
    model = reference(smollm2, skip)
    engine = Engine(smollm2, max_len=64)
    tokens = engine.generate(prompt, max_new_tokens=24, skip=skip)
    assert torch.equal(tokens, greedy(model, prompt, 24))
    sequence = torch.cat([prompt, tokens], dim=1)
    logits = [engine.prefill(prompt, skip=skip)] + [engine.decode(tokens[:, i]) for i in range(24)]
    assert_as_near_as(torch.cat(logits), model, lambda model: model(sequence).logits[0, prompt.shape[1] - 1 :])
