"""Prompts in chunks: the same logits whatever the chunks, windows kept, the same bits for the same prompt."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from pyprune import Decoder, Engine, to_transformers
from pyprune.ops import native
from pyprune.runtime import attention
from pyprune.runtime.chunks import Chunk, chunks
from tests import seeds
from tests.judge import assert_as_near_as, in_float64

kernels = pytest.mark.skipif(
    native.report()["cpu_library"] is None,
    reason="torch's own SiLU, in the reference implementations, rounds the last few values of a tensor in another way",
)


def ids(batch: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 131, (batch, tokens), generator=seeds.generator(seed))


def windowed(decoder: Decoder, *windows: int) -> Decoder:
    blocks = [
        dataclasses.replace(block, mha=dataclasses.replace(block.mha, window=window))
        for block, window in zip(decoder.blocks, windows, strict=True)
    ]
    return dataclasses.replace(decoder, blocks=tuple(blocks))


def windowed_model(decoder: Decoder, windows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """The transformers model of a decoder whose blocks get windows of their own, which no configuration describes."""

    def attend(module, query, key, value, *_, **__):
        gap = torch.arange(query.shape[2])[:, None] - torch.arange(key.shape[2])
        seen = (gap >= 0) & (gap < (windows[module.layer_idx] or len(gap)))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True).transpose(1, 2), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "windowed", attend)
    model = to_transformers(decoder)
    model.set_attn_implementation("windowed")
    return model


def one_by_one(decoder: Decoder, prompt: torch.Tensor) -> torch.Tensor:
    """The logits after `prompt`, each of its tokens decoded alone."""
    engine = Engine(decoder, max_batch=len(prompt), max_len=prompt.shape[1])
    logits = engine.prefill(prompt[:, :1])
    for token in prompt.T[1:]:
        logits = engine.decode(token)
    return logits


@pytest.mark.parametrize(
    ("lengths", "most"),
    [([1], 1), ([700], 512), ([5, 3], 4), ([3, 50, 1, 20], 16), ([1, 2, 3], 2), ([9] * 64, 512), ([9] * 64, 50)],
)
@pytest.mark.parametrize("together", [True, False])
def test_pieces_cover_every_prompt_in_order_and_keep_their_size(lengths: list[int], most: int, together: bool):
    reached = [0] * len(lengths)
    for chunk in chunks(lengths, most, together):
        sequences = chunk.last - chunk.first
        assert sequences * (chunk.stop - chunk.start) <= most
        assert together or sequences == 1
        assert chunk.stop <= max(lengths[chunk.first : chunk.last])
        for b in range(chunk.first, chunk.last):
            assert reached[b] == chunk.start
            reached[b] = chunk.stop
    assert all(rows >= length for rows, length in zip(reached, lengths, strict=True))


def test_a_long_prompt_does_not_drag_short_ones_along():
    assert list(chunks([2, 2, 9], 6)) == [Chunk(0, 3, 0, 2), Chunk(2, 3, 2, 8), Chunk(2, 3, 8, 9)]


@pytest.mark.parametrize("chunk", [5, 16, 100, 512])
def test_a_prompt_of_700_tokens_has_hugging_face_logits_whatever_the_pieces(tiny, chunk: int):
    prompt = ids(1, 713)
    logits = Engine(tiny, max_len=720, prefill_chunk=chunk).prefill(prompt)
    assert_as_near_as(logits, to_transformers(tiny), lambda model: model(prompt, logits_to_keep=1).logits[:, -1])


@pytest.mark.parametrize("chunk", [3, 40, 150, 2000])
def test_a_ragged_batch_in_pieces_gives_each_prompt_what_it_gets_alone(tiny, chunk: int):
    lengths = [40, 301, 1, 17, 100]
    rows = [ids(1, n, seed=n) for n in lengths]
    prompt, mask = torch.zeros(5, 301, dtype=torch.long), torch.zeros(5, 301)
    for b, row in enumerate(rows):
        prompt[b, : lengths[b]], mask[b, : lengths[b]] = row, 1
    engine = Engine(tiny, max_batch=5, max_len=320, prefill_chunk=chunk)
    logits, next_logits = engine.prefill(prompt, mask), engine.decode(torch.arange(5))
    whole = Engine(tiny, max_len=320, prefill_chunk=4000)
    model = to_transformers(tiny)
    exact = in_float64(model)
    for b, row in enumerate(rows):
        sequence = torch.cat([row, torch.tensor([[b]])], dim=1)
        ours = torch.stack([logits[b : b + 1], next_logits[b : b + 1]], dim=1)
        alone = torch.stack([whole.prefill(row), whole.decode(torch.tensor([b]))], dim=1)
        for result in (ours, alone):
            assert_as_near_as(result, model, lambda model, ids=sequence: model(ids).logits[:, -2:], exact)


@pytest.mark.parametrize("chunk", [16, 50, 60, 512])
@pytest.mark.parametrize("windows", [(1, 7, 0, 33, 55), (54, 56, 60, 61, 2000)], ids=str)
def test_windows_hide_the_same_rows_in_prefill_as_in_decoding(tiny, monkeypatch, chunk, windows: tuple[int, ...]):
    decoder, prompt = windowed(tiny, *windows), ids(2, 110)
    expected = one_by_one(decoder, prompt)
    engine = Engine(decoder, max_batch=2, max_len=110, prefill_chunk=chunk)
    model = windowed_model(tiny, windows, monkeypatch)
    for result in (expected, engine.prefill(prompt)):
        assert_as_near_as(result, model, lambda model: model(prompt).logits[:, -1])
    if min(window or 110 for window in windows) < 50:  # a window that is not kept is seen
        assert (Engine(tiny, max_batch=2, max_len=110).prefill(prompt) - expected).abs().max() > 1e-2


def test_only_the_rows_that_a_window_shows_are_taken_from_the_cache(tiny, monkeypatch):
    shapes = set()
    plain = attention.F.scaled_dot_product_attention

    def watched(q, k, v, attn_mask=None, **options):
        shapes.add((q.shape[2], k.shape[2], None if attn_mask is None else tuple(attn_mask.shape)))
        return plain(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(attention, "ANY_TOKENS", False)
    Engine(windowed(tiny, *[40] * 5), max_len=300, prefill_chunk=100).prefill(ids(1, 300))
    assert shapes == {(100, 100, (100, 100)), (100, 139, (100, 139))}
    shapes.clear()
    Engine(tiny, max_len=300, prefill_chunk=100).prefill(ids(1, 300))
    assert shapes == {(100, 100, None), (100, 200, (100, 200)), (100, 300, (100, 300))}


@kernels
@pytest.mark.parametrize(("batch", "tokens"), [(3, 5), (5, 23), (2, 300), (64, 9), (7, 100), (3, 43)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_one_prompt_has_the_same_bits_at_every_place_of_a_batch_and_on_every_run(
    tiny, request, batch, tokens, dtype, threads
):
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(threads)
    engine = Engine(tiny.to(dtype), max_batch=batch, max_len=tokens + 5)
    prompt = ids(1, tokens).repeat(batch, 1)
    runs = []
    for _ in range(2):
        logits = [engine.prefill(prompt)]
        for _ in range(3):
            logits.append(engine.decode(logits[-1].argmax(-1)))
        runs.append(torch.stack(logits))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[0][:, :1].expand_as(runs[0]))


@pytest.fixture(params=["own", "torch"])
def gemm(request):
    """What multiplies many rows, whatever this processor does by itself."""
    native.select_gemm(request.param)
    yield request.param
    native.select_gemm("auto")


@kernels
@pytest.mark.parametrize("batch", [1, 2, 9, 64])
@pytest.mark.parametrize("chunk", [64, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prompt_decodes_to_the_same_bits_at_every_batch_size(tiny, gemm, batch: int, chunk: int, dtype):
    """While up to 64 prompt tokens run at once, or our own kernels multiply them; and in every decode step."""
    if chunk > 64 and gemm == "torch":
        pytest.skip("the last bits of torch's GEMM depend on the number of rows")
    prompt, others = ids(1, 9), ids(batch - 1, 9, seed=1)
    decoder = tiny.to(dtype)
    alone, together = (Engine(decoder, max_batch=n, max_len=20, prefill_chunk=chunk) for n in (1, batch))
    expected, logits = alone.prefill(prompt), together.prefill(torch.cat([others, prompt]))
    for _ in range(4):
        assert torch.equal(logits[-1:], expected)
        token = logits.argmax(-1)
        expected, logits = alone.decode(token[-1:]), together.decode(token)


@kernels
@pytest.mark.skipif(not attention.ANY_TOKENS, reason="torch's SDPA takes long stretches of a prompt here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [7, 100, 2000])
def test_our_own_kernels_read_a_prompt_at_once_with_the_bits_of_one_read_token_by_token(
    tiny, request, chunk: int, dtype
):
    request.addfinalizer(partial(native.select_gemm, "auto"))
    native.select_gemm("own")
    decoder, prompt = windowed(tiny, 0, 7, 0, 33, 0).to(dtype), ids(3, 110)
    engine = Engine(decoder, max_batch=3, max_len=110, prefill_chunk=chunk)
    assert torch.equal(engine.prefill(prompt), one_by_one(decoder, prompt))


@pytest.mark.real_model
def test_smollm2_reads_a_prompt_in_pieces_as_hugging_face_does(smollm2):
    prompt = torch.randint(0, smollm2.vocab_size, (1, 150), generator=seeds.generator(0))
    logits = Engine(smollm2, max_len=150, prefill_chunk=64).prefill(prompt)  # the last one of few tokens
    assert_as_near_as(logits, to_transformers(smollm2), lambda model: model(prompt, logits_to_keep=1).logits[:, -1])


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("chunk", [8, 512])
def test_rows_that_no_token_has_written_are_never_used(tiny, whole: bool, chunk: int):
    """New memory may hold anything."""
    lengths = [3, 40, 18]
    prompt, mask = ids(3, 40), torch.arange(40) < torch.tensor(lengths)[:, None]
    clean, dirty = (Engine(tiny, max_batch=3, max_len=60, prefill_chunk=chunk) for _ in range(2))
    if not whole:
        clean._whole = dirty._whole = None
    for (keys, values), (other_keys, other_values) in zip(clean._caches, dirty._caches, strict=True):
        keys.zero_(), values.zero_()
        other_keys.fill_(torch.nan), other_values.fill_(torch.nan)
    expected = clean.generate(prompt, mask, max_new_tokens=12, logprobs=True)
    for ours, theirs in zip(dirty.generate(prompt, mask, max_new_tokens=12, logprobs=True), expected, strict=True):
        assert torch.equal(ours, theirs)
