"""The GPU check's parts for the paper's tables: on a CPU in tiny sizes, and what they are made of."""

from __future__ import annotations

import json
import statistics
from types import SimpleNamespace

import pytest
import torch

import pyprune
from bench.gpu_check import generations, layer_peer, paper_rows, replays, table1, width_sweep
from bench.gpu_check.child import finite
from bench.gpu_check.paper_rows import PACKED, PADDED
from bench.gpu_check.settings import Settings
from pyprune.models.transformers_model import to_transformers
from pyprune.strides import gpu_stride
from pyprune.study.alignment import alignments
from pyprune.study.paper import facts
from pyprune.study.paper.evidence import collect
from tests.study.gpu_files import check, part


def dry(module, **options) -> dict:
    """The part's result, after every state that it saved was JSON."""
    saved = []
    settings = Settings(module.__name__.rsplit(".", 1)[1], "", seed=3, dry_run=True, bandwidth=1e10, options=options)
    result = module.run(settings, lambda state: saved.append(json.dumps(finite(state), allow_nan=False)))
    return json.loads(json.dumps(finite(result), allow_nan=False)) | {"saved": len(saved)}


@pytest.fixture(scope="module")
def tiny():
    return pyprune.load(paper_rows.DRY_SPEC, dtype=torch.float32)


def whole(model: str):
    """Stand-in for the unpruned model: its sizes alone."""
    shape = next(one for one in facts.shapes() if (one.model, one.method) == (model, facts.ORIGINAL))
    block = SimpleNamespace(mha=SimpleNamespace(heads=int(shape.heads)), ffn=SimpleNamespace(width=int(shape.width)))
    return SimpleNamespace(blocks=[block] * shape.blocks)


# --- the rows of Table 1 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", facts.shapes(), ids=lambda one: f"{one.model}-{one.ratio}-{one.method}")
def test_every_row_has_the_papers_number_of_parameters(shape):
    hidden = {"llama-7b": 4096, "vicuna-13b": 5120}[shape.model]
    row = paper_rows.sizes(shape.model, shape.method, shape.ratio, whole(shape.model))
    blocks = sum(4 * hidden * 128 * h + 3 * hidden * w + 2 * hidden for h, w in zip(row.heads, row.widths, strict=True))
    assert (blocks + (2 * 32000 + 1) * hidden) / 1e9 == pytest.approx(shape.parameters_b, abs=0.051)
    assert len(row.heads) == len(row.widths) == shape.blocks


@pytest.mark.parametrize("model", facts.MODELS)
def test_flaps_widths_are_ragged_with_the_tables_mean_and_deviation_and_the_same_every_time(model):
    for ratio in facts.ratios(model):
        shape = next(one for one in facts.shapes() if (one.model, one.method, one.ratio) == (model, "flap", ratio))
        row = paper_rows.sizes(model, "flap", ratio, whole(model))
        assert row == paper_rows.sizes(model, "flap", ratio, whole(model))
        assert statistics.fmean(row.widths) == pytest.approx(shape.width, abs=0.5 / len(row.widths) + 1e-9)
        assert statistics.fmean(row.heads) == pytest.approx(shape.heads, abs=0.5 / len(row.heads) + 1e-9)
        assert statistics.pstdev(row.widths) == pytest.approx(shape.width_deviation, rel=0.01)
        assert statistics.pstdev(row.heads) == pytest.approx(shape.heads_deviation, rel=0.03)
        assert len(set(row.widths)) > len(row.widths) // 2
        assert all(1 <= width <= whole(model).blocks[0].ffn.width for width in row.widths)


def test_ragged_numbers_reach_their_sum_at_the_ends_too():
    for mean, deviation, most in ((1.2, 0.4, 3), (2.9, 0.3, 3), (5.0, 40.0, 10), (31.9, 0.1, 32)):
        values = paper_rows.ragged(mean, deviation, most, 20, seed=5)
        assert sum(values) == round(20 * mean)
        assert min(values) >= 1
        assert max(values) <= most


def test_llm_pruner_keeps_its_first_four_and_last_two_blocks():
    row = paper_rows.sizes("llama-7b", "llm-pruner", "27%", whole("llama-7b"))
    assert row.widths == (11008,) * 4 + (7155,) * 26 + (11008,) * 2
    assert row.heads == (32,) * 4 + (21,) * 26 + (32,) * 2


def test_packed_and_padded_rows_are_one_model_whose_rows_lie_differently(tiny):
    row = paper_rows.sizes("llama-7b", "flap", "27%", tiny)
    packed, padded = (paper_rows.model_of(one, tiny) for one in paper_rows.layouts(row))
    assert [one.layout for one in paper_rows.layouts(row)] == [PACKED, PADDED]
    assert packed.parameters() == padded.parameters() < tiny.parameters()
    assert packed.bytes_per_token() == padded.bytes_per_token()
    for a, b, original in zip(packed.blocks, padded.blocks, tiny.blocks, strict=True):
        assert a.ffn.down.weight.is_contiguous()
        down = b.ffn.down.weight
        if b.ffn.width < original.ffn.width:
            assert down.stride(0) == gpu_stride(b.ffn.width, down.itemsize)
        assert torch.equal(a.ffn.down.weight, b.ffn.down.weight)
        assert a.ffn.gate.weight.data_ptr() == b.ffn.gate.weight.data_ptr() == original.ffn.gate.weight.data_ptr()
    ids = torch.arange(6).unsqueeze(0)
    with torch.inference_mode():
        theirs = to_transformers(packed)(ids).logits[:, -1]
    for decoder in (packed, padded):
        torch.testing.assert_close(pyprune.Engine(decoder, 1, 8).prefill(ids), theirs, rtol=1e-4, atol=1e-4)


def test_depth_and_rows_without_a_gap_have_one_layout(tiny):
    assert len(paper_rows.layouts(paper_rows.sizes("llama-7b", "depth", "20%", tiny))) == 1
    row = paper_rows.sizes("llama-7b", "llm-pruner", "20%", whole("llama-7b"))
    assert paper_rows.layouts(row) == [row]  # 8256 and 11008 are multiples of 16 bytes
    rounded = paper_rows.rounded(paper_rows.sizes("llama-7b", "flap", "20%", whole("llama-7b")))
    assert not any(width % 64 for width in rounded.widths)


# --- the parts ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table1_result():
    return dry(table1)


@pytest.fixture(scope="module")
def generations_result():
    return dry(generations)


@pytest.mark.slow
def test_table1_times_every_row_beside_the_original_the_smallest_ratio_first(table1_result):
    found = table1_result
    assert found["errors"] == {}
    names = [row["name"] for row in found["rows"]]
    assert names[:4] == ["original", "depth 20%", "wanda-sp 20%", "wanda-sp 20% padded"]
    timed = [(line["row"], line["batch"]) for line in found["timings"]]
    assert {name for name, _ in timed} == set(names)
    first = timed.index(("depth 27%", 1))
    assert {name.split()[-1] for name, _ in timed[:first] if name != "original"} <= {"20%", "padded"}
    for line in found["timings"]:
        assert len(line["step_seconds"]) == len(line["original_step_seconds"]) == table1.DRY_ROUNDS
        assert "original" in line["beside"]
        assert line["speedup"]["median"] > 0


@pytest.mark.slow
def test_a_row_that_fails_costs_no_other(monkeypatch):
    step = table1.decode_replay

    def failing(engine, prompts, position):
        if len(engine.decoder.blocks) < 8:
            raise RuntimeError("no kernel")
        return step(engine, prompts, position)

    groups = table1.groups
    monkeypatch.setattr(table1, "decode_replay", failing)
    monkeypatch.setattr(table1, "groups", lambda name, original: [next(groups(name, original))])
    found = dry(table1)
    assert set(found["errors"]) == {f"depth 20%, batch {batch}" for batch in table1.DRY_BATCHES}
    assert not any(line["row"].startswith("depth") for line in found["timings"])
    assert any(line["row"] == "flap 20% padded" for line in found["timings"])


def test_rows_are_tried_in_groups_that_fit_and_one_that_never_fits_alone(tiny, monkeypatch):
    group = [paper_rows.sizes("llama-7b", method, "20%", tiny) for method in facts.METHODS[1:]]
    cached = max(table1.BATCHES) * (table1.PROMPT + table1.NEW)
    most = max(paper_rows.own_bytes(row, tiny, cached) for row in group)
    assert most > paper_rows.own_bytes(paper_rows.sizes("llama-7b", "depth", "20%", tiny), tiny, cached) > 0
    for free, sizes in ((None, [3]), (2.1 * most / table1.SHARE_OF_MEMORY, [2, 1]), (1, [1, 1, 1])):
        monkeypatch.setattr(table1.memory, "available", lambda device, free=free: free)
        assert [len(rows) for rows in table1.fitting(group, tiny, torch.device("cpu"))] == sizes


@pytest.mark.slow
def test_generations_times_both_engines_and_names_the_memory_of_table_9(generations_result):
    found = generations_result
    assert found["errors"] == {}
    rows = ["original", "depth 20%", "wanda-sp 20%", "flap 20%", "llm-pruner 20%"]
    for tokens in (table1.DRY_NEW, generations.DRY_SHORT):
        own = [line for line in found["timings"] if line["new_tokens"] == tokens]
        assert {(line["row"], line["engine"]) for line in own} == {(r, e) for r in rows for e in ("hf", "pyprune")}
        assert all(line["speedup"]["median"] > 0 for line in own)
        assert all(("over_hf" in line) == (line["engine"] == "pyprune") for line in own)
    memory = {(line["method"], line["ratio"], line["engine"]) for line in found["memory"]}
    depths = [("original", None), *(("depth", ratio) for ratio in ("20%", "27%", "35%"))]
    assert memory == {(*row, engine) for row in depths for engine in ("hf", "pyprune")}
    assert not any("error" in line for line in found["memory"])
    assert all(line["peak_bytes"] is None and line["weights_bytes"] > 0 for line in found["memory"])  # a CPU has none


def test_rounds_stop_before_the_budget_but_not_before_the_least():
    seconds = {"a": [], "b": []}
    runs = {name: lambda: None for name in seconds}
    kept = []
    device = torch.device("cpu")
    generations.rounds_within(runs, seconds, -1.0, 3, 9, device, lambda: kept.append(1))
    assert (len(seconds["a"]), len(seconds["b"]), len(kept)) == (3, 3, 3)
    generations.rounds_within(runs, seconds, 60.0, 1, 4, device, lambda: None)
    assert len(seconds["a"]) == 7


def test_the_compiled_layer_is_the_same_layer_and_takes_turns_with_ours():
    found = dry(layer_peer)
    assert found["absent"] == {}
    assert [line["batch"] for line in found["timings"]] == list(layer_peer.BATCHES)
    for line in found["timings"]:
        assert set(line["seconds"]) == {"peer", "pyprune"}
        assert set(line["share"]) == {"peer", "pyprune"}
        assert line["speedup"]["median"] > 0
    block = 2 * (4 * 64 * 64 + 3 * 64 * 172 + 2 * 64)
    assert found["bytes"] == layer_peer.DRY_LAYERS * block


@pytest.mark.slow
def test_a_layer_that_does_not_compile_is_absent_and_ours_is_timed(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no such compiler")

    monkeypatch.setattr(torch, "compile", broken)
    found = dry(layer_peer)
    assert all("no such compiler" in reason for reason in found["absent"].values())
    assert len(found["absent"]) == len(layer_peer.BATCHES)
    assert all(set(line["seconds"]) == {"pyprune"} and "speedup" not in line for line in found["timings"])


@pytest.mark.slow
def test_a_compiled_layer_with_other_results_is_absent(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: lambda x: 2 * function(x))
    assert all("is off by" in reason for reason in dry(layer_peer)["absent"].values())


# --- the width sweep ----------------------------------------------------------------------------------------------


def test_the_sweep_visits_every_point_once_every_alignment_and_the_papers_widths_first():
    points = list(width_sweep.order(width_sweep.RANGES, width_sweep.ROWS, width_sweep.HIDDEN))
    widths = [*range(7000, 7301), *range(8500, 8701)]
    assert len(points) == len(set(points)) == len(widths) * len(width_sweep.ROWS) * 2
    assert {width for width, _, _ in points} == set(widths)
    first = {width for width, _, _ in points[:320]}
    assert {7155, 7156, 8577} <= first
    assert {min(width & -width, 128) for width in first} == {1, 2, 4, 8, 16, 32, 64, 128}


def test_the_sweep_times_every_side_until_its_time_is_up():
    found = dry(width_sweep, seconds=0.5)
    assert found["errors"] == {}
    assert len(found["points"]) > 0
    for point in found["points"]:
        assert set(point["seconds"]) == set(width_sweep.SIDES)
        assert all(len(taken) == width_sweep.DRY_ROUNDS and min(taken) > 0 for taken in point["seconds"].values())
    assert len(dry(width_sweep, seconds=0.0)["points"]) == 1


@pytest.mark.parametrize("role", ["gate/up", "down"])
def test_every_side_of_the_sweep_multiplies_the_same_values(role):
    pool = width_sweep.Pool(64, 128, torch.bfloat16, torch.device("cpu"))
    results = {}
    for side in width_sweep.SIDES:
        pool._next = 0
        calls = width_sweep.calls_of(side, pool, role, 101, 3, 64)
        assert len(calls) > 1
        x, weight = (calls[0].args[0], calls[0].args[1])
        expected = x.double() @ weight.double().T
        results[side] = calls[0]()
        torch.testing.assert_close(results[side].double(), expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
    strides = width_sweep.calls_of(width_sweep.OURS_STRIDES, pool, role, 101, 3, 64)[0].args
    assert all(tensor.stride(0) % 32 == 0 for tensor in strides)


@pytest.mark.slow
def test_a_side_that_fails_is_told_once_and_the_others_are_timed(monkeypatch):
    calls_of = width_sweep.calls_of

    def failing(side, *args):
        if side == width_sweep.OURS:
            raise RuntimeError("no kernel")
        return calls_of(side, *args)

    monkeypatch.setattr(width_sweep, "calls_of", failing)
    found = dry(width_sweep, seconds=0.3)
    assert all(key.startswith(width_sweep.OURS) for key in found["errors"])
    assert found["errors"]
    assert all(set(point["seconds"]) == set(width_sweep.SIDES) - {width_sweep.OURS} for point in found["points"])


def points(cost) -> list[dict]:
    return [
        {"role": "down", "width": width, "rows": 1, "seconds": {"x": [cost(width) * width] * 3}}
        for width in range(7000, 7300)
    ]


def test_the_alignment_that_matters_is_found():
    for needed in (1, 2, 8, 64):
        [found] = alignments(points(lambda width, n=needed: 1.5 if width % n else 1.0), hidden=4096)
        assert found.needed == needed
        assert found.worst == pytest.approx(1.0 if needed == 1 else 1.5, rel=1e-3)


def test_a_difference_within_the_tolerance_is_none_and_one_aligned_class_alone_says_nothing():
    [found] = alignments(points(lambda width: 1.02 if width % 8 else 1.0), hidden=4096)
    assert found.needed == 1
    assert alignments([one for one in points(lambda width: 1.0) if one["width"] % 128 == 0], hidden=4096) == []


# --- replays ------------------------------------------------------------------------------------------------------


def test_a_recording_holds_what_it_reads(monkeypatch, tiny):
    """A CUDA graph knows addresses alone: whoever keeps the replay must keep its tensors."""
    import gc
    import weakref

    monkeypatch.setattr(replays, "record_cuda_graph", lambda run, device: lambda: None)
    tensor = torch.ones(3)
    seen = weakref.ref(tensor)
    step = replays.chain_replay([tensor.sum], torch.device("cuda"))
    del tensor
    gc.collect()
    assert seen() is not None
    del step
    gc.collect()
    assert seen() is None


# --- files that the report reads ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_report_reads_what_the_parts_write(table1_result, generations_result):
    parts = [part("table1", table1_result), part("generations", generations_result)]
    parts += [part("layer_peer", dry(layer_peer)), part("sweep", dry(width_sweep, seconds=0.3))]
    [evidence] = collect(["dry.json"], [check(*parts, dry_run=True)])
    assert (evidence.model, evidence.device, evidence.dry_run) == ("llama-7b", "cpu", True)
    assert evidence.timing("flap", "35%", "pyprune", "step", 2, "padded") is not None
    assert evidence.timing("flap", "20%", "hf", "generation") is not None
    assert len(evidence.peaks) == 8
    assert (len(evidence.peers), len(evidence.sweeps)) == (1, 1)
