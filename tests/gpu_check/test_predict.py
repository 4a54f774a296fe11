"""Predictions: bytes and launches from sizes, and the tables that bench/NOTES.md holds."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import pyprune
from bench.gpu_check import launches, predict
from bench.gpu_check.settings import ROOT
from pyprune.models.decoder import Decoder

IDEAL = predict.Machine("ideal", 1e12, 1e14, 90)


@pytest.fixture(scope="module")
def seven() -> Decoder:
    return predict.meta("shape:llama-7b")


def test_a_step_reads_the_weights_and_each_sequences_cache(seven):
    cache = 32 * 2 * 32 * 128 * 2  # bytes of a position
    assert launches.step_bytes(seven, 1, 9) == seven.bytes_per_token() + 10 * cache
    assert launches.step_bytes(seven, 16, 9) == seven.bytes_per_token() + 160 * cache
    without = launches.step_bytes(seven, 1, 9, left_out=2)
    assert without == seven.bytes_per_token() - 2 * launches.block_bytes(seven.blocks[0]) + 10 * cache * 30 // 32


@pytest.mark.parametrize(
    ("model", "batch", "cache", "capability", "expected"),
    [
        ("shape:llama-7b", 1, 44, 90, 5 * 32 + 1),  # as the three runs' profiles have it
        ("shape:llama-7b", 16, 44, 90, 8 * 32 + 1),
        ("shape:llama-7b", 1, 140, 90, 6 * 32 + 1),  # a cache of more than one KV split is reduced
        ("shape:llama-1b", 1, 44, 90, 5 * 16 + 1),
    ],
)
def test_launches_are_those_that_were_seen(model, batch, cache, capability, expected):
    assert launches.step_launches(predict.meta(model), batch, cache, capability) == expected


@pytest.mark.parametrize("capability", [80, 86, 90])
@pytest.mark.parametrize("batch", [4, 16, 64])
@pytest.mark.parametrize(("heads", "width", "cache"), [(32, 11008, 140), (26, 8807, 44), (18, 6054, 140)])
def test_launches_are_those_that_the_kernels_record(heads, width, cache, batch, capability):
    """A block's operators on tensors without values, their launches recorded instead of started."""
    triton_kernels = pytest.importorskip("pyprune.triton_kernels")
    if not triton_kernels.available():
        pytest.skip(str(triton_kernels.why_not()))
    from pyprune.triton_kernels import inspect, registration

    sizes = f"hidden=4096,blocks=1,heads={heads},kv_heads={heads},head_dim=128,ffn={width},vocab=256"
    decoder = predict.meta(f"shape:{sizes}")
    [block] = decoder.blocks
    mha, ffn = block.mha, block.ffn

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    x, places = empty(batch, 1, 4096), empty(batch, 1, dtype=torch.int64)
    tables = [empty(cache, 64, dtype=torch.float32) for _ in range(2)]
    caches = [empty(batch, heads, cache, 128) for _ in range(2)]
    run = registration.OPERATORS

    def step() -> None:
        weights = (mha.q.weight, mha.k.weight, mha.v.weight)
        none = (None,) * 5
        q = run["norm_qkv_rope"](x, mha.norm, 1e-6, *weights, *none, *tables, places, *caches)
        context = run["decode_attention"](q, *caches, places, 0.1).flatten(2)
        y = run["linear_residual"](context, mha.o.weight, None, x)
        wide = run["norm_gate_up"](y, ffn.norm, 1e-6, ffn.gate.weight, ffn.up.weight, None, None)
        run["linear_residual"](wide, ffn.down.weight, None, y)

    recorded = inspect.recorded(capability, step)
    assert launches.block_launches(decoder, block, batch, cache, capability) == len(recorded)


def test_a_launch_costs_what_the_kept_runs_left_over():
    costs = predict.left()
    assert set(costs.launch) == {(small, cores) for small in (False, True) for cores in (False, True)}
    assert all(2e-6 < cost < 8e-6 for cost in costs.launch.values())
    assert all(3e-5 < cost < 2e-4 for cost in costs.host_launch.values())
    assert 0.8 < costs.gemm_share < 1


def test_the_runs_that_the_cost_was_fitted_to_come_back(seven):
    """LLaMA-7B at batch 1 on the H100 of run 3: 4.88 ms."""
    machine = dataclasses.replace(predict.h100(), name="again")
    seconds = predict.decode_seconds(seven, 1, predict.RUN_CACHE, predict.middle(predict.RUN_CACHE), machine)
    assert seconds == pytest.approx(4.88e-3, rel=0.01)
    assert predict.scoring_seconds(seven, 10, 128, machine) == pytest.approx(0.525, rel=0.05)


def test_time_is_bytes_over_bandwidth_and_launches(seven):
    cost = predict.left().launch[False, False]
    expected = launches.step_bytes(seven, 1, 76) / 1e12 + 193 * cost
    assert predict.decode_seconds(seven, 1, 140, 76, IDEAL) == pytest.approx(expected)


def test_scoring_shares_prefixes(seven):
    blocks = sum(launches.block_bytes(block) for block in seven.blocks) / 2 / 32
    assert predict.scoring_flops(seven, 10, 128) == pytest.approx(2 * blocks * 1280 * 528)


def test_many_rows_of_a_product_are_bound_by_operations_and_few_by_bytes():
    few, many = (predict.linear_seconds(4096, 7155, rows, IDEAL) for rows in (1, 4096))
    assert few == pytest.approx(2 * (4096 * 7155 + 4096 + 7155) / 1e12)
    assert many == pytest.approx(2 * 4096 * 4096 * 7155 / 1e14)


def test_the_notes_hold_the_predictions_that_the_code_makes():
    """Of each row what comes before the columns that measurements fill."""
    lines = (ROOT / "bench" / "NOTES.md").read_text().splitlines()
    for line in predict.tables().splitlines():
        cells = line.split("|")
        if len(cells) < 6:
            assert line in lines
            continue
        fixed = "|".join(cells[:3])
        assert any(kept.startswith(fixed) for kept in lines), fixed


def test_a_prediction_takes_the_models_sizes_and_not_its_weights():
    real = pyprune.load("shape:tiny", dtype=torch.bfloat16)
    assert launches.step_bytes(real, 2, 5) == launches.step_bytes(predict.meta("shape:tiny"), 2, 5)
