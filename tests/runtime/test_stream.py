"""Streams: the tokens of `generate` as they come, ends of sequences, and log-probabilities."""

from __future__ import annotations

import pytest
import torch

from pyprune import Engine, InputError, SamplingParams
from tests.judge import assert_as_near_as
from tests.runtime.test_engine import greedy, ids, reference

OPTIONS = [
    {},
    {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "seed": 3},
    {"max_new_tokens": [4, 9, 1], "eos_token_id": [7, 11]},
    {"skip": [2], "repetition_penalty": 1.3, "eos_token_id": [[5], [], [9, 40]]},
]


def padded(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(row) for row in rows)
    prompt, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest)
    for b, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        prompt[b, place], mask[b, place] = row, 1
    return prompt, mask


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("logprobs", [False, True])
def test_a_stream_gives_what_generate_gives(tiny, options: dict, logprobs: bool):
    engine, prompt = Engine(tiny, max_batch=3, max_len=50), ids(3, 6)
    options = {"max_new_tokens": 12, **options, "logprobs": logprobs}
    whole = engine.generate(prompt, **options)
    steps = list(engine.stream(prompt, **options))
    if not logprobs:
        assert torch.equal(torch.stack(steps, 1), whole)
        return
    for part, expected in zip(zip(*steps, strict=True), whole, strict=True):
        assert torch.equal(torch.stack(part, 1), expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_parameters_give_what_keywords_give(tiny, options: dict):
    engine, prompt = Engine(tiny, max_batch=3, max_len=50), ids(3, 6)
    fields = {"max_new_tokens": 12, **options}
    skip = fields.pop("skip", None)
    params, expected = SamplingParams(**fields), engine.generate(prompt, skip=skip, **fields)
    assert torch.equal(engine.generate(prompt, skip=skip, params=params), expected)
    assert torch.equal(torch.stack(list(engine.stream(prompt, skip=skip, params=params)), 1), expected)


def test_parameters_and_keywords_together_are_refused(tiny):
    engine = Engine(tiny, max_len=50)
    for call in (engine.generate, engine.stream):
        with pytest.raises(InputError, match="temperature: given beside params"):
            call(ids(1, 6), params=SamplingParams(), temperature=1.0)


def test_tokens_come_one_step_at_a_time(tiny):
    engine = Engine(tiny, max_batch=2, max_len=20)
    stream = engine.stream(ids(2, 6), max_new_tokens=5)
    for step in range(5):
        token = next(stream)
        assert (token.shape, token.dtype) == ((2,), torch.int64)
        assert engine.lengths.tolist() == [6 + step] * 2
    with pytest.raises(StopIteration):
        next(stream)


def test_a_stream_left_early_leaves_the_engine_usable(tiny):
    engine, prompt = Engine(tiny, max_batch=2, max_len=20), ids(2, 6)
    expected = engine.generate(prompt, max_new_tokens=10)
    stream = engine.stream(prompt, max_new_tokens=10)
    tokens = [next(stream) for _ in range(4)]
    stream.close()
    engine.decode(tokens[-1])  # the cache is there to go on with
    assert engine.lengths.tolist() == [10, 10]
    assert torch.equal(engine.generate(prompt, max_new_tokens=10), expected)


@pytest.mark.parametrize("use", ["generate", "prefill", "decode", "stream"])
def test_a_stream_notices_that_its_cache_is_gone(tiny, use: str):
    engine = Engine(tiny, max_batch=2, max_len=20)
    stream = engine.stream(ids(2, 6), max_new_tokens=10)
    token = next(stream)
    if use == "decode":
        engine.decode(token)
    elif use == "stream":
        next(engine.stream(ids(2, 6), max_new_tokens=10))
    elif use == "prefill":
        engine.prefill(ids(2, 6))
    else:
        engine.generate(ids(2, 6), max_new_tokens=10)
    with pytest.raises(InputError, match="stream: another call has used the engine"):
        next(stream)


def test_bad_input_is_told_before_the_first_token_and_leaves_a_running_stream_alone(tiny):
    engine = Engine(tiny, max_batch=2, max_len=20)
    stream = engine.stream(ids(2, 6), max_new_tokens=10)
    next(stream)
    for bad in ({"max_new_tokens": 16}, {"skip": [9]}, {"temperature": -1.0}, {"eos_token_id": "x"}):
        with pytest.raises(InputError):
            engine.stream(ids(2, 6), **bad)
    assert len(list(stream)) == 9


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_sequence_has_its_own_number_of_new_tokens(tiny, side: str):
    rows = [ids(1, n, seed=n)[0] for n in (3, 17, 8)]
    limits = [14, 2, 1]
    engine = Engine(tiny, max_batch=3, max_len=18)  # 17 + 2 - 1: the long prompt has just room enough
    out = engine.generate(*padded(rows, side), max_new_tokens=limits)
    assert out.shape == (3, 14)
    assert engine.lengths.tolist() == [16, 18, 8]
    for b, row in enumerate(rows):
        alone = Engine(tiny, max_len=18).generate(row[None], max_new_tokens=limits[b])
        assert torch.equal(out[b, : limits[b]], alone[0])
        assert (out[b, limits[b] :] == tiny.pad_token_id()).all()


def test_a_full_sequence_does_not_disturb_the_others(tiny):
    rows = [ids(1, 18, seed=1)[0], ids(1, 2, seed=2)[0]]
    engine = Engine(tiny, max_batch=2, max_len=18)
    out = engine.generate(*padded(rows, "right"), max_new_tokens=[1, 16])
    assert torch.equal(out[1:], Engine(tiny, max_len=18).generate(rows[1][None], max_new_tokens=16))
    with pytest.raises(InputError, match="the cache is full"):
        engine.decode(torch.tensor([1, 1]))


def test_after_a_stream_that_stopped_early_decoding_knows_how_much_room_is_left(tiny):
    engine, prompt = Engine(tiny, max_len=12), ids(1, 5)
    stop = int(engine.generate(prompt, max_new_tokens=3)[0, 2])
    out = engine.generate(prompt, max_new_tokens=8, eos_token_id=stop)
    for _ in range(12 - 5 - (out.shape[1] - 1)):
        engine.decode(torch.tensor([1]))
    with pytest.raises(InputError, match="the cache is full"):
        engine.decode(torch.tensor([1]))


def test_each_sequence_ends_at_its_own_tokens(tiny):
    engine, prompt = Engine(tiny, max_batch=3, max_len=40), ids(3, 5)
    free = engine.generate(prompt, max_new_tokens=20)
    stops = [[int(free[0, 4])], [], [130, int(free[2, 7]), int(free[2, 2])]]
    out = engine.generate(prompt, max_new_tokens=20, eos_token_id=stops)
    for b, ids_that_end in enumerate(stops):
        places = [place for place, token in enumerate(free[b].tolist()) if token in ids_that_end]
        end = places[0] if places else 19
        assert torch.equal(out[b, : end + 1], free[b, : end + 1])
        assert (out[b, end + 1 :] == tiny.pad_token_id()).all()


@pytest.mark.parametrize("stops", [[], [[], []]])
def test_no_ids_end_nothing(tiny, stops: list):
    engine, prompt = Engine(tiny, max_batch=2, max_len=40), ids(2, 5)
    assert torch.equal(
        engine.generate(prompt, max_new_tokens=9, eos_token_id=stops), engine.generate(prompt, max_new_tokens=9)
    )


def test_an_ended_sequence_keeps_its_cache_rows(tiny):
    engine, prompt = Engine(tiny, max_batch=2, max_len=40), ids(2, 5)
    free = engine.generate(prompt, max_new_tokens=12)
    engine.generate(prompt, max_new_tokens=[3, 12])
    assert engine.lengths.tolist() == [7, 16]
    # It goes on where it stopped, as if the others had stopped too.
    logits = engine.decode(torch.stack([free[0, 2], free[1, 11]]))
    assert int(logits[0].argmax()) == int(free[0, 3])


@pytest.mark.parametrize("options", [{}, {"temperature": 1.3, "top_k": 5, "seed": 1, "repetition_penalty": 2.0}])
def test_log_probabilities_are_the_models_own(tiny, options: dict):
    rows = [ids(1, n, seed=n)[0] for n in (5, 12)]
    engine = Engine(tiny, max_batch=2, max_len=40)
    tokens, logs = engine.generate(*padded(rows, "left"), max_new_tokens=[9, 6], skip=[1], logprobs=True, **options)
    assert logs.dtype == torch.float32
    model = reference(tiny, {"blocks": [1]})
    for b, (row, new) in enumerate(zip(rows, (9, 6), strict=True)):
        sequence, chosen = torch.cat([row, tokens[b, :new]])[None], tokens[b, :new, None]

        def log_probabilities(model, sequence=sequence, chosen=chosen):
            return model(sequence).logits[0, -len(chosen) - 1 : -1].log_softmax(-1).gather(1, chosen)[:, 0]

        assert_as_near_as(logs[b, :new], model, log_probabilities)
        assert (logs[b, new:] == 0).all()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("skip", [None, {"blocks": [1], "mha": [3], "ffn": [0]}], ids=str)
def test_ragged_batches_have_hugging_face_tokens(tiny, side: str, skip: dict | None):
    rows = [ids(1, n, seed=n)[0] for n in (4, 21, 11)]
    out = Engine(tiny, max_batch=3, max_len=60).generate(*padded(rows, side), max_new_tokens=25, skip=skip)
    prompt, mask = padded(rows, "left")  # the only side on which Hugging Face generates
    assert torch.equal(out, greedy(reference(tiny, skip), prompt, 25, mask.long()))


def test_a_repetition_penalty_gives_hugging_face_tokens(tiny):
    prompt = ids(2, 9)
    model = reference(tiny, None)
    expected = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=25, min_new_tokens=25, do_sample=False,
        repetition_penalty=1.4,
    )[:, 9:]  # fmt: skip
    engine = Engine(tiny, max_batch=2, max_len=40)
    out = engine.generate(prompt, max_new_tokens=25, repetition_penalty=1.4)
    assert torch.equal(out, expected)
    assert not torch.equal(out, engine.generate(prompt, max_new_tokens=25))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_count_as_repeated(tiny, side: str):
    rows = [ids(1, n, seed=n)[0] for n in (4, 11)]
    prompt, mask = padded(rows, side)
    for filler in (0, 77):
        filled = torch.where(mask == 1, prompt, filler)
        out = Engine(tiny, max_batch=2, max_len=40).generate(filled, mask, max_new_tokens=20, repetition_penalty=3.0)
        for b, row in enumerate(rows):
            alone = Engine(tiny, max_len=40).generate(row[None], max_new_tokens=20, repetition_penalty=3.0)
            assert torch.equal(out[b : b + 1], alone)


@pytest.mark.parametrize("batch", [2, 7])
def test_a_sequence_draws_the_same_numbers_whatever_the_batch_and_the_number_of_tokens(tiny, batch: int):
    engine, prompt = Engine(tiny, max_batch=batch, max_len=40), ids(1, 5)
    options = {"temperature": 1.0, "seed": 11}
    alone = engine.generate(prompt, max_new_tokens=20, **options)
    together = engine.generate(prompt.repeat(batch, 1), max_new_tokens=20, **options)
    assert torch.equal(together[:1], alone)
    assert not torch.equal(together[1], together[0])  # each sequence of a batch draws its own
    assert torch.equal(engine.generate(prompt, max_new_tokens=8, **options), alone[:, :8])


def test_without_a_seed_torchs_own_decides(tiny):
    engine, prompt = Engine(tiny, max_len=40), ids(1, 5)
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        drawn.append(engine.generate(prompt, max_new_tokens=20, temperature=1.0))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("skip", [iter([1, 3]), (block for block in (1, 3)), {1, 3}])
def test_a_skip_that_can_be_read_once_is_read_once(tiny, skip):
    engine, prompt = Engine(tiny, max_len=32), ids(1, 7)
    expected = engine.generate(prompt, max_new_tokens=10, skip=[1, 3])
    assert torch.equal(engine.generate(prompt, max_new_tokens=10, skip=skip), expected)


def test_a_stream_keeps_the_mask_that_it_was_given(tiny):
    engine, prompt = Engine(tiny, max_len=32), ids(1, 7)
    mask = torch.zeros(5, 2, dtype=torch.bool)
    mask[2] = True
    expected = engine.generate(prompt, max_new_tokens=10, skip=mask)
    stream = engine.stream(prompt, max_new_tokens=10, skip=mask)
    mask.fill_(True)
    assert torch.equal(torch.stack(list(stream), 1), expected)
