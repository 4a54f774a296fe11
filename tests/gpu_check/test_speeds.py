"""The timed parts: replays, the timeline, masks, widths and scoring, and that what breaks is told."""

from __future__ import annotations

import pytest
import torch

import pyprune
from bench.gpu_check import decode, masked, scoring, widths
from bench.gpu_check.replays import chain_replay, decode_replay, interleaved_replays, time_replays
from bench.gpu_check.settings import Settings
from bench.gpu_check.summary import summary
from bench.gpu_check.timeline import KERNELS, timeline
from bench.naive import naive_scores
from pyprune import ops
from pyprune.models.transformers_model import to_transformers
from tests import seeds

CPU = torch.device("cpu")
DRY = Settings("", "", dry_run=True, bandwidth=1e9, gemm_flops=1e9)


def shown(group: str, result: dict) -> str:
    part = {"name": group, "group": group, "status": "done", "result": result, "machine": 0}
    return summary({"parts": [part], "machines": [{}], "dry_run": True, "seconds": 1, "limit_s": 2, "seed": 0})


def test_rounds_are_means_and_the_first_one_is_not_counted():
    calls = []
    seconds = interleaved_replays({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, CPU, 3, 2)
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}
    assert calls.count("a") == calls.count("b") == (1 + 3) * 2
    assert all(one == two for one, two in zip(calls[::2], calls[1::2], strict=True))  # a round is one step's alone


def test_a_replay_of_a_step_lies_in_the_middle_of_a_generation():
    decoder = pyprune.load("shape:tiny")
    engine, rows = pyprune.Engine(decoder, 2, 40), []
    step = engine._step
    engine._step = lambda tokens, positions: rows.append(positions.tolist()) or step(tokens, positions)
    replay = decode_replay(engine, torch.zeros(2, 5, dtype=torch.int64), 30)
    assert len(time_replays(replay, CPU, 2, 3)) == 2
    assert rows == [[30, 30]] * 9
    assert not any(torch.isnan(cache).any() for caches in engine._caches for cache in caches)


def test_a_chain_calls_all_in_their_order():
    calls = []
    chain_replay([lambda: calls.append(1), lambda: calls.append(2)], CPU)()
    assert calls == [1, 2]


def test_a_timeline_sums_by_name_and_joins_what_is_short():
    x = torch.randn(64, 64)
    told = timeline(lambda: [(x @ x).relu(), x @ x], CPU, 2)
    by_name = {kernel["kernel"]: kernel["launches"] for kernel in told["kernels"]}
    assert (by_name["aten::mm"], by_name["aten::relu"]) == (2, 1)
    assert len(told["kernels"]) <= KERNELS + 1
    assert told["seconds"] == pytest.approx(sum(kernel["seconds"] for kernel in told["kernels"]))


@pytest.mark.slow
def test_every_step_has_its_prediction_and_what_breaks_leaves_the_rest(monkeypatch):
    right = decode.engine_and_step

    def broken(decoder, batch, length, seed):
        if batch == 2:
            raise RuntimeError("out of shared memory")
        return right(decoder, batch, length, seed)

    monkeypatch.setattr(decode, "engine_and_step", broken)
    result = decode.run(DRY, lambda told: None)
    good = [line for line in result["timings"] if line["batch"] == 1]
    assert all(line["predicted_seconds"] > 0 and line["share"] > 0 for line in good)
    assert len(good) == len(decode.DRY_LENGTHS)
    assert {line["error"] for line in result["timings"] if line["batch"] == 2} == {"RuntimeError: out of shared memory"}
    assert [line["batch"] for line in result["prompts"]] == [1, 2]
    text = shown("decode", result)
    assert "predicted" in text
    assert "out of shared memory" in text


def test_a_masked_blocks_share_is_what_it_adds_to_the_host_leaving_it_out():
    seconds = {
        "nothing": [10.0, 11.0, 10.0],
        "host": [6.0, 6.0, 7.0],
        "mask": [6.4, 6.4, 6.4],
        "clear mask": [10.5] * 3,
    }
    told = masked.shares(seconds, gone=2)
    assert told["block_seconds"] == 2.0
    assert told["masked_share"] == pytest.approx(0.1)
    assert told["clear_mask_share"] == pytest.approx(0.05)


def test_masked_steps_differ_from_those_that_keep_the_block():
    decoder = pyprune.load("shape:tiny")
    logits = {}
    for name, skip in masked.ways(decoder, (1,)).items():
        torch.manual_seed(3)
        logits[name] = masked.step_of(decoder, 1, 20, skip)()
    assert torch.equal(logits["host"], logits["mask"])
    assert torch.equal(logits["nothing"], logits["clear mask"])
    assert not torch.equal(logits["host"], logits["nothing"])


def test_all_sides_of_a_width_compute_the_same_product():
    torch.manual_seed(seeds.seed())
    shapes = {}
    for name, call in widths.sides("down", 75, 64, 3, CPU):
        shapes[name] = tuple(call().shape)
    assert shapes == dict.fromkeys(
        ("ours", "cublas", "ours, padded rows", "cublas, padded rows", "cublas, all of the padded"), (3, 64)
    )
    names = [name for name, _ in widths.sides("gate and up", 128, 64, 3, CPU)]
    assert names == ["ours", "cublas"]  # nothing to round up


def test_padded_rows_are_apart_by_cache_lines_with_zeros_between():
    weight = widths._matrix(5, 75, 96, CPU)
    assert weight.stride() == (96, 1)
    whole = weight.as_strided((5, 96), (96, 1))
    assert torch.equal(whole[:, 75:], torch.zeros(5, 21, dtype=torch.bfloat16))
    assert whole[:, :75].abs().min() >= 0
    assert float(weight.float().std()) > 0


@pytest.mark.slow
def test_a_side_that_fails_is_told_and_the_others_are_timed(monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(ops, "linear_residual", broken)
    result = widths.run(DRY, lambda told: None)
    down = [line for line in result["timings"] if line["role"] == "down"]
    assert all("cublas" in line["seconds"] and line["predicted_seconds"] > 0 for line in down)
    assert all(line["errors"]["ours"] == "RuntimeError: no kernel" for line in down)
    assert "no kernel" in shown("widths", result)


def test_each_call_of_a_side_takes_another_weight():
    turn = widths.Turn(["a", "b", "c"])
    assert [turn() for _ in range(5)] == ["a", "b", "c", "a", "b"]


def test_the_naive_loop_gives_the_scores_of_the_definition_and_leaves_the_model_whole():
    decoder = pyprune.load("shape:tiny")
    ids = torch.randint(0, decoder.vocab_size, (2, 12), generator=seeds.generator(0))
    model = to_transformers(decoder)
    scores = pyprune.score(decoder, ids)
    assert naive_scores(model, ids) == pytest.approx([scores.baseline, *scores.values], rel=1e-4)
    assert len(model.model.layers) == len(decoder.blocks)


def test_scoring_is_told_beside_its_prediction_with_its_kernels():
    result = scoring.run(DRY, lambda told: None)
    assert result["errors"] == {}
    assert result["predicted_seconds"] > 0
    assert result["timeline"]["kernels"]
    assert "predicted" in shown("scoring", result)
