"""The benchmarks' peers: they compute the same as we do, take turns fairly, and say so when they are absent."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pyprune
from bench.ceilings import MemoryReader
from bench.peers import Absent, HuggingFace, HuggingFaceCompiled, LlamaCpp, PyPrune, hugging_face, llama_cpp, opened
from bench.rounds import Side, interleave
from bench.tables import aligned, interval_text
from pyprune.models.transformers_model import to_transformers
from pyprune.study.measure import speedup
from tests import seeds

PROMPT, STEPS = 12, 20


def prompts(decoder, batch):
    return torch.randint(0, decoder.vocab_size, (batch, PROMPT), generator=seeds.generator(1))


def greedy(peer, decoder, batch):
    with opened(peer, decoder, batch, PROMPT + STEPS) as decoding:
        decoding.prefill(torch.zeros(batch, PROMPT, dtype=torch.int64))
        decoding.decode(2)  # of which nothing may remain
        decoding.prefill(prompts(decoder, batch))
        return decoding.decode(STEPS)


# --- the peers compute the same -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
def test_steps_after_a_prefill_are_those_of_generate(tiny, batch):
    whole = pyprune.Engine(tiny, max_batch=batch, max_len=64).generate(prompts(tiny, batch), max_new_tokens=STEPS + 1)
    assert torch.equal(greedy(PyPrune(), tiny, batch), whole[:, 1:])
    assert torch.equal(greedy(HuggingFace(), tiny, batch), whole[:, 1:])


@pytest.mark.real_model
def test_llama_cpp_decodes_the_same_tokens_from_the_same_logits(smollm2, tmp_path):
    peer, batch = LlamaCpp(tmp_path, exact=True), 3
    if reason := peer.absent_reason():
        pytest.skip(reason)
    assert torch.equal(greedy(peer, smollm2, batch), greedy(PyPrune(), smollm2, batch))
    ids = prompts(smollm2, batch)
    plain = to_transformers(smollm2)
    with torch.inference_mode(), opened(peer, smollm2, batch, PROMPT) as decoding:
        decoding.prefill(ids)
        own = plain(ids).logits[:, -1].double()
        exact = plain.double()(ids).logits[:, -1]
        theirs = torch.from_numpy(decoding.logits(batch).astype(np.float64))
    assert (theirs - exact).abs().max() <= 2 * (own - exact).abs().max() + 1e-5


# --- absent peers -------------------------------------------------------------------------------------------------


def test_compressed_weights_give_the_same_steps_and_are_fewer_bytes():
    low = pyprune.load("shape:hidden=320,blocks=2,heads=5,kv_heads=5,head_dim=64,ffn=640,vocab=301", dtype="bf16")
    assert torch.equal(greedy(PyPrune(weight_format="bf16-lossless12"), low, 3), greedy(PyPrune(), low, 3))
    with opened(PyPrune(weight_format="bf16-lossless12"), low, 1, 8) as small, opened(PyPrune(), low, 1, 8) as plain:
        assert plain.bytes_per_token == low.bytes_per_token()
        assert 0.75 < small.bytes_per_token / plain.bytes_per_token < 0.85


def test_weights_that_are_not_compressed_are_absence(tiny):
    with (
        pytest.raises(Absent, match="float32 weights are not compressed"),
        opened(PyPrune(weight_format="bf16-lossless12"), tiny, 1, 8),
    ):
        pass


def test_a_peer_that_is_not_installed_says_so(monkeypatch, tiny, tmp_path):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    llama_cpp.library.cache_clear()
    try:
        with pytest.raises(Absent, match="llama-cpp-python does not load"), opened(LlamaCpp(tmp_path), tiny, 1, 8):
            pass
    finally:
        llama_cpp.library.cache_clear()


def test_compiling_without_a_compiler_is_absence(monkeypatch, tiny):
    monkeypatch.setattr(hugging_face.shutil, "which", lambda name: None)
    with pytest.raises(Absent, match=r"C\+\+ compiler"), opened(HuggingFaceCompiled(), tiny, 1, 8):
        pass


@pytest.mark.alone
def test_compiling_for_too_long_is_absence(monkeypatch, tiny):
    monkeypatch.setattr(hugging_face, "COMPILE_SECONDS", 1)
    monkeypatch.setattr(torch, "compile", lambda model, **options: lambda *args, **named: time.sleep(30))
    before = time.monotonic()
    with pytest.raises(Absent, match="more than 1 s"):
        HuggingFaceCompiled().open(tiny, 1, 8)
    assert time.monotonic() - before < 20


def test_compiling_that_fails_is_absence_with_the_reason(monkeypatch, tiny):
    def fails(*_, **__):
        raise RuntimeError("no such\ninstruction")

    monkeypatch.setattr(torch, "compile", lambda model, **options: fails)
    with pytest.raises(Absent, match="no such instruction"):
        HuggingFaceCompiled().open(tiny, 1, 8)


# --- rounds, readers and tables -----------------------------------------------------------------------------------


class Pedantic:
    """pytest-benchmark's part in a round: `setup`, then the timed function."""

    def pedantic(self, function, setup, rounds, warmup_rounds):
        for _ in range(warmup_rounds + rounds):
            setup()
            function()
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[1.0] * rounds))


def test_every_side_runs_once_a_round_right_after_its_preparation():
    events = []
    sides = {
        name: Side(lambda name=name: events.append(name), lambda name=name: events.append(f"before {name}"))
        for name in "abcd"
    }
    ticks = iter(range(1000))
    seconds = interleave(Pedantic(), sides, rounds=5, warmups=2, clock=lambda: next(ticks))
    assert list(seconds) == list("abcd")
    assert all(len(samples) == 5 for samples in seconds.values())
    assert all(prepared == f"before {name}" for prepared, name in zip(events[::2], events[1::2], strict=True))
    turns = [tuple(events[1 + 8 * turn : 8 * (turn + 1) : 2]) for turn in range(7)]
    assert all(sorted(turn) == list("abcd") for turn in turns)
    assert len(set(turns)) > 3
    assert len({turn.index("a") for turn in turns}) > 1


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) - 4])
@pytest.mark.parametrize("place", [0, 1 / 3, 1 / 2, 1])
def test_memchr_reads_to_the_last_byte(size, place):
    reader = MemoryReader(size)
    reader.threads = 3
    reader.memchr()
    data = reader.data.view(torch.uint8)
    data[int(place * (len(data) - 1))] = 0x11
    with pytest.raises(AssertionError, match="early"):
        reader.memchr()


def test_a_ratio_is_told_with_its_interval_or_its_quartiles():
    few, many = speedup([2.0, 4.0, 3.0], [1.0, 1.0, 1.0]), speedup([2.0, 3.0, 4.0] * 4, [1.0] * 12)
    assert interval_text(few) == "3.00 (quartiles 2.50 to 3.50)"
    assert interval_text(many) == f"3.00 ({many['low']:.2f} to {many['high']:.2f})"
    assert interval_text(few, "{:.1f}", lambda ratio: -ratio) == "-3.0 (quartiles -3.5 to -2.5)"


def test_columns_are_as_wide_as_their_widest_cell():
    assert aligned([{"a": "1", "bc": "x"}, {"a": "234", "bc": ""}]) == ["a    bc", "1    x", "234"]
