"""Repairs against independent float64 computations on tiny models, and what they leave alone."""

from __future__ import annotations

import errno
import importlib
import json
import math
import os

import pytest
import torch
from definitions import (
    RIDGE,
    SIZES,
    Run,
    assert_fitted,
    narrowing,
    streams_at_cut,
    weights_of,
)

import pyprune
from pyprune import InputError, Pruning
from pyprune.commands import repair as command
from pyprune.models.decoder import FFN, Linear
from pyprune.recovery import repair_with_report, streams
from pyprune.recovery.closed_form import closed_form
from pyprune.recovery.fitting import Fitting
from pyprune.recovery.linear import linear_at_cut
from pyprune.recovery.methods import AT_CUT, BY_STEPS, FOLLOWING, METHODS
from pyprune.recovery.refit import refit
from pyprune.recovery.repair import Repaired
from pyprune.recovery.streams import Stage
from pyprune.regression.states import States
from tests import seeds
from tests.judge import assert_no_worse_than_torch
from tests.library import needs_library


def test_refit_is_the_ridge_regression_at_the_cut(original, ids):
    ffn, inputs, middle, _, target = streams_at_cut(original, ids)
    repaired = pyprune.repair(original, Pruning(blocks=(2,)), ids, "refit", ridge=RIDGE)
    design = inputs, target - middle, weights_of(target), ffn.down.weight, ffn.down.bias
    assert_fitted(repaired.blocks[1].ffn.down, *design)
    assert repaired.blocks[2] == original.blocks[3]


def test_linear_is_replacemes_least_squares(original, ids):
    ffn, _, middle, x_pre, target = streams_at_cut(original, ids)
    repaired = pyprune.repair(original, Pruning(blocks=(2,)), ids, "linear", ridge=RIDGE, weighting="equal")
    moved = x_pre - middle
    wished = target - x_pre + moved  # the paper's x_post - x_pre + M
    design = moved, wished, torch.ones(moved.shape[:2]), torch.eye(20, dtype=torch.float64), None
    assert_fitted(Linear(repaired.blocks[1].ffn.down.weight), *design, onto=ffn.down.weight)


def test_mean_update_adds_the_mean_of_what_is_missing(original, ids):
    ffn, _, _, x_pre, target = streams_at_cut(original, ids)
    repaired = pyprune.repair(original, Pruning(blocks=(2,)), ids, "mean-update")
    plain, exact = (target - x_pre).mean((0, 1)), (target.double() - x_pre.double()).mean((0, 1))
    old = 0 if ffn.down.bias is None else ffn.down.bias
    assert_no_worse_than_torch(repaired.blocks[1].ffn.down.bias, old + plain, old + exact)
    assert list(repaired.pruning.compensation) == ["blocks.1.down.bias"]


def test_scale_equals_scaling_the_stream(original, ids):
    _, _, _, x_pre, target = streams_at_cut(original, ids)
    alpha = float(target.double().norm(dim=-1).sum() / x_pre.double().norm(dim=-1).sum())
    repaired = pyprune.repair(original, Pruning(blocks=(2,)), ids, "scale")
    assert repaired.blocks[1] == original.blocks[1]
    for place, block in ((2, original.blocks[3]), (3, original.blocks[4])):
        torch.testing.assert_close(repaired.blocks[place].mha.o.weight, block.mha.o.weight / alpha)
        torch.testing.assert_close(repaired.blocks[place].ffn.down.weight, block.ffn.down.weight / alpha)
    scaled, folded = Run(original, ids), Run(repaired, ids)
    scaled.x = x_pre * alpha
    for block in original.blocks[3:]:
        scaled.block(block)
    for block in repaired.blocks:
        folded.block(block)
    torch.testing.assert_close(scaled.x, folded.x * alpha, rtol=1e-3, atol=1e-4)


def test_scales_of_several_cuts_equal_scaling_the_stream_at_each(llama, ids):
    repaired = pyprune.repair(llama, Pruning(blocks=(1, 3)), ids, "scale")
    teacher, scaled, folded = Run(llama, ids), Run(llama, ids), Run(repaired, ids)
    product = 1.0
    for block in llama.blocks:
        target = teacher.block(block)
        if block.index in (1, 3):
            alpha = float(target.double().norm(dim=-1).sum() / scaled.x.double().norm(dim=-1).sum())
            scaled.x, product = scaled.x * alpha, product * alpha
        else:
            scaled.block(block)
    for block in repaired.blocks:
        folded.block(block)
    assert product != pytest.approx(1.0, rel=1e-2)
    torch.testing.assert_close(scaled.x, folded.x * product, rtol=1e-3, atol=1e-4)


def test_the_cosine_form_reaches_the_distance_that_it_tells(llama, ids):
    report = repair_with_report(llama, Pruning(blocks=(2,)), ids, "linear-cosine", ridge=RIDGE)
    _, inputs, middle, _, target = streams_at_cut(llama, ids)

    def distance(linear):
        stream = middle.double() + inputs.double() @ linear.weight.double().T
        cosine = torch.nn.functional.cosine_similarity(stream, target.double(), dim=-1)
        return float((1 - cosine).mean())

    [fit] = report.fits
    old, new = llama.blocks[1].ffn.down, report.decoder.blocks[1].ffn.down
    assert fit["before"] == pytest.approx(distance(old), rel=1e-4)
    assert fit["after"] == pytest.approx(distance(new), rel=1e-4)
    squares = pyprune.repair(llama, Pruning(blocks=(2,)), ids, "linear", ridge=RIDGE)
    assert distance(new) <= distance(squares.blocks[1].ffn.down) < distance(old)


def test_refit_all_goes_on_from_the_repaired_stream(original, ids):
    """The o of the block behind the cut sees the repaired model's inputs, and the original's stream is its wish."""
    repaired = pyprune.repair(original, Pruning(blocks=(2,)), ids, "refit-all-o", ridge=RIDGE)
    student, teacher = Run(repaired, ids), Run(original, ids)
    for block in repaired.blocks[:2]:
        student.block(block)
    for block in original.blocks[:3]:
        teacher.block(block)
    mha, kind = original.blocks[3].mha, type(original.blocks[3])
    before = student.x
    inputs = student.context(mha)
    target = teacher.block(kind(3, mha, None))
    assert_fitted(repaired.blocks[2].mha.o, inputs, target - before, weights_of(target), mha.o.weight, mha.o.bias)


def few_steps(method):
    return {"steps": 3} if {"auto", "blockwise", "tail"} & set(method.split("+")) else {}


@needs_library  # the reference implementations multiply in float16
def test_float16_weights_get_the_fit_of_their_values(llama, ids):
    half = llama.to(dtype=torch.float16)
    single = half.to(dtype=torch.float32)
    of_half, of_single, exact = (
        pyprune.repair(model, Pruning(blocks=(2,)), ids, "refit", ridge=RIDGE, **options).blocks[1].ffn.down.weight
        for model, options in ((half, {}), (single, {}), (single, {"exact": True}))
    )
    assert of_half.dtype == torch.float16
    error = (of_single - exact).double().abs().max()
    rounded = 2**-11 * exact.double().abs() + 2**-25  # a half unit of the last place, and of the smallest number
    assert ((of_half.double() - exact.double()).abs() <= 1.001 * rounded + 2 * error + 1e-6 * exact.abs().max()).all()


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("flap-bias", "stat")])
@pytest.mark.parametrize(
    "pruning", [Pruning(blocks=(2, 4)), Pruning(mha=(2,), ffn=(1, 4))], ids=["blocks", "sublayers"]
)
def test_shapes_record_and_the_originals_bits_stay(llama, ids, method, pruning):
    bits = {name: tensor.clone() for name, tensor in llama.tensors()}
    pruned = pyprune.apply(llama, pruning)
    repaired = pyprune.repair(llama, pruned, ids, method, **few_steps(method))
    assert all(torch.equal(bits[name], tensor) for name, tensor in llama.tensors())
    shapes = {name: tensor.shape for name, tensor in repaired.tensors() if not name.endswith("bias")}
    assert shapes == {name: tensor.shape for name, tensor in pruned.tensors()}
    assert pyprune.index_map(repaired) == pyprune.index_map(pruned)
    assert repaired.pruning.blocks == pruned.pruning.blocks


@pytest.mark.parametrize("method", ["refit-all-o", "mean-update", "blockwise+tail"])
def test_a_saved_repair_comes_back(tmp_path, ids, method):
    original = pyprune.load("shape:hidden=20,blocks=4,heads=4,kv_heads=2,head_dim=6,ffn=23,vocab=53")
    pruned = pyprune.apply(original, Pruning(blocks=(1,), neurons={2: (3, 5)}))
    pruned.save(tmp_path / "pruned")
    loaded = pyprune.load(str(tmp_path / "pruned"))
    repaired = pyprune.repair(original, loaded, ids, method, **few_steps(method))
    repaired.save(tmp_path / "repaired")
    again = pyprune.load(str(tmp_path / "repaired"))
    tensors = dict(repaired.tensors())
    assert all(torch.equal(tensors.pop(name), tensor) for name, tensor in again.tensors())
    assert not tensors
    assert pyprune.index_map(again) == pyprune.index_map(pruned)
    assert again.pruning == repaired.pruning


@pytest.mark.slow
def test_every_repair_brings_the_stream_nearer(llama, ids):
    for method in ("linear", "linear-cosine", "refit", "refit-all", "refit-all-o", "blockwise"):
        report = repair_with_report(llama, Pruning(blocks=(2,)), ids.repeat(8, 1), method)
        assert report.fits
        assert all(fit["after"] <= fit["before"] for fit in report.fits), method
        assert any(fit["after"] < fit["before"] for fit in report.fits), method


def test_auto_is_the_best_on_held_out_windows_or_nothing(llama, ids):
    report = repair_with_report(llama, Pruning(blocks=(2,)), ids, steps=3)
    best = min(report.tried.values())
    closed = ["refit-all-o", "refit", "linear", "scale"]
    if report.tried["refit-all-o"] < report.perplexities[1]:
        closed = closed[:1]
    assert [name for name in report.tried if "+" not in name and name != "tail"] == closed
    best_closed = min(closed, key=report.tried.__getitem__)
    is_repaired = report.tried[best_closed] < report.perplexities[1]
    assert (f"{best_closed}+tail" if is_repaired else "tail") in report.tried
    assert len(report.tried) == len(closed) + 1
    assert report.perplexities[2] == min(best, report.perplexities[1])
    assert not report.harms
    assert (report.method == "none") == (best >= report.perplexities[1])
    held_out = ids[7::8]
    assert report.perplexities[2] == pyprune.perplexity(report.decoder, held_out)


def test_the_last_block_folds_into_the_one_before(llama, ids):
    repaired = pyprune.repair(llama, Pruning(blocks=(4,)), ids, "refit", ridge=RIDGE)
    assert not torch.equal(repaired.blocks[3].ffn.down.weight, llama.blocks[3].ffn.down.weight)


@pytest.mark.parametrize("method", AT_CUT)
def test_nothing_is_computed_behind_the_last_cut(llama, ids, method, monkeypatch):
    ran = []

    def counted(sublayer, *rest):
        ran.append(id(sublayer))
        return projection_inputs(sublayer, *rest)

    projection_inputs = streams.projection_inputs
    monkeypatch.setattr(streams, "projection_inputs", counted)
    closed_form(llama, pyprune.apply(llama, Pruning(blocks=(1,))), ids, method, Fitting())
    needed = [block.mha for block in llama.blocks[:2]] + [block.ffn for block in llama.blocks[:2]]
    assert set(ran) == set(map(id, needed))
    assert ran.count(id(llama.blocks[0].ffn)) == 2 * ran.count(id(llama.blocks[0].mha))  # the original's, the pruned's


@pytest.mark.parametrize("method", ["refit-all", "refit-all-o"])
@pytest.mark.parametrize("ridge", ["auto", 1.0])
def test_a_sublayer_that_adds_nothing_stays_as_it_is(llama, ids, method, ridge):
    silent = llama.map(torch.clone)
    silent.blocks[3].ffn.up.weight.zero_()
    repaired = pyprune.repair(silent, Pruning(blocks=(2,)), ids, method, ridge=ridge)
    assert torch.equal(repaired.blocks[2].ffn.down.weight, silent.blocks[3].ffn.down.weight)
    report = repair_with_report(silent, Pruning(blocks=(2,)), ids, "auto", ridge=ridge, steps=1)
    assert math.isfinite(report.tried["refit-all-o"])


def test_a_map_of_what_adds_nothing_is_none(llama, ids):
    silent = llama.map(torch.clone)
    silent.blocks[1].ffn.down.weight.zero_()
    repaired = pyprune.repair(silent, Pruning(blocks=(2,)), ids, "linear")
    assert not repaired.blocks[1].ffn.down.weight.any()


@pytest.mark.parametrize("method", ["mean-update", "scale", "linear", "refit"])
def test_a_run_at_block_0_has_nothing_to_fold_into(llama, ids, method):
    with pytest.raises(InputError, match="begins at block 0"):
        pyprune.repair(llama, Pruning(blocks=(0, 1)), ids, method)
    assert pyprune.repair(llama, Pruning(blocks=(0, 1)), ids, "refit-all-o").pruning.blocks == (0, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "train"}, "method 'train'"),
        ({"ridge": -1.0}, "ridge -1.0"),
        ({"ridge": "none"}, "ridge 'none'"),
        ({"weighting": "all"}, "weighting 'all'"),
        ({"method": "refit", "ridge": 0, "first": float("nan")}, "first nan"),
        ({"method": "blockwise", "steps": 0}, "steps 0"),
        ({"method": "stat"}, "removed heads and neurons"),
        ({"method": "refit+scale"}, r"after a \+ only refit-all, refit-all-o, blockwise, tail"),
        ({"method": "auto+tail"}, "auto.tail.*nothing after auto"),
        ({"method": "refit", "minutes": 1.0}, "minutes 1.0"),
        ({"method": "tail", "tail_blocks": 0}, "tail_blocks 0"),
        ({"method": "mean-update", "ridge": 0.5}, "ridge 0.5: belongs to method auto, linear.*, not to mean-update"),
        ({"method": "tail", "weighting": "equal"}, "weighting 'equal': belongs to method auto, .*, not to tail"),
        ({"method": "blockwise+tail", "first": 0.0}, "first 0.0: belongs to"),
        ({"method": "scale", "exact": True}, "exact True: belongs to"),
        ({"method": "refit", "steps": 3}, "steps 3: belongs to method auto, blockwise, tail, not to refit"),
        ({"method": "refit", "rate": 1e-3}, "rate 0.001: belongs to"),
        ({"method": "refit", "precision": "bf16"}, "precision 'bf16': belongs to"),
        ({"method": "blockwise", "tail_blocks": 2}, "tail_blocks 2: belongs to method auto, tail, not to blockwise"),
        ({"method": "tail", "precision": "fp16"}, "precision 'fp16': fp32, bf16 are accepted"),
    ],
)
def test_bad_options_are_named(llama, ids, settings, message):
    with pytest.raises(InputError, match=message):
        pyprune.repair(llama, Pruning(blocks=(2,)), ids, **settings)


def test_too_few_tokens_without_a_ridge_are_named(llama, ids):
    with pytest.raises(InputError, match=r"ffn of block 1: 17 weighted tokens do not determine 23 inputs"):
        pyprune.repair(llama, Pruning(blocks=(2,)), ids[:1], "refit", ridge=0)
    with pytest.raises(InputError, match="3 samples: at least 8 are expected"):
        pyprune.repair(llama, Pruning(blocks=(2,)), ids[:3])


def test_a_model_of_another_original_is_refused(llama, ids):
    other = pyprune.load(SIZES.replace("hidden=20", "hidden=24"))
    with pytest.raises(InputError, match="its embedding differs"):
        pyprune.repair(llama, pyprune.apply(other, Pruning(blocks=(2,))), ids)
    with pytest.raises(InputError, match="no pruning record"):
        pyprune.repair(llama, other, ids)
    with pytest.raises(InputError, match="only heads or neurons"):
        pyprune.repair(llama, narrowing(), ids, "linear")


@pytest.mark.parametrize(
    ("gone", "others", "message"),
    [
        (Pruning(neurons={1: (0, 2)}), Pruning(neurons={1: (2, 3)}), "the original lacks neuron 0 of block 1"),
        (Pruning(kv_groups={3: (0,)}), Pruning(kv_groups={3: (1,)}), "the original lacks head 0 of block 3"),
        (Pruning(neurons={1: (0, 2)}), Pruning(neurons={1: (0, 2)}), "has all units of"),
        (Pruning(blocks=(1,)), Pruning(blocks=(1,)), "has all units of"),
    ],
)
def test_an_original_with_less_or_no_more_is_refused(llama, ids, gone, others, message):
    with pytest.raises(InputError, match=message):
        pyprune.repair(pyprune.apply(llama, gone), pyprune.apply(llama, others), ids)


def test_states_beyond_the_limit_give_the_same_repair(llama, ids):
    in_memory = pyprune.repair(llama, Pruning(blocks=(2,)), ids, "refit-all-o")
    in_files = pyprune.repair(llama, Pruning(blocks=(2,)), ids, "refit-all-o", memory=1)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(in_memory.tensors(), in_files.tensors(), strict=True))
    states = States(torch.float32, torch.device("cpu"), limit=100)
    assert states.empty(5, 5).untyped_storage().filename is None
    assert states.empty(5, 5).untyped_storage().filename is not None


def test_states_that_the_disk_has_no_room_for_are_told_before_they_are_written(monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    states = States(torch.float32, torch.device("cpu"), limit=0)
    with pytest.raises(InputError, match=r"no room for 100 bytes .*No space left.*TMPDIR"):
        states.empty(5, 5)


def test_activations_that_are_no_numbers_are_told(llama, ids):
    broken = llama.map(torch.clone)
    broken.blocks[1].ffn.up.weight[3, 4] = float("nan")
    with pytest.raises(InputError, match="ffn of block 1: its activations hold NaN or infinity"):
        pyprune.repair(broken, Pruning(blocks=(2,)), ids[:7], "refit", ridge=1.0)


def test_a_perplexity_that_is_no_number_harms_and_is_json(llama):
    report = Repaired(llama, "scale", (3.0, 4.0, float("nan")), {"scale": float("inf")}, [])
    assert report.harms
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["tried"] == {"scale": "inf"}


def test_a_repair_that_gives_no_numbers_harms(llama, ids, monkeypatch):
    def broken(original, pruned, *_, **__):
        return pruned.map(lambda tensor: torch.full_like(tensor, float("nan"))), []

    monkeypatch.setattr(importlib.import_module("pyprune.recovery.repair"), "closed_form", broken)
    report = repair_with_report(llama, Pruning(blocks=(2,)), ids, "refit")
    assert report.harms
    assert math.isnan(report.reached())
    assert repair_with_report(llama, Pruning(blocks=(2,)), ids, steps=2).method != "refit-all-o"


@pytest.mark.parametrize("fit", [refit, linear_at_cut])
def test_streams_in_bfloat16_are_fitted_in_float32(fit):
    """As they are on a GPU: the same values give the same fit, whatever their dtype."""
    generator = seeds.generator(7)
    before, inputs = (torch.randn(8, 6, n, generator=generator).to(torch.bfloat16) for n in (20, 23))
    target = (before + 0.02 * torch.randn(8, 6, 20, generator=generator)).to(torch.bfloat16)
    weight = torch.randn(20, 23, generator=generator).to(torch.bfloat16)
    sublayer = pyprune.load(SIZES).blocks[1].ffn

    def refitted(dtype, of_projection):
        projection = Linear(weight.to(of_projection))
        stage = Stage(
            (1, "ffn"), sublayer, sublayer, True, before.to(dtype), target.to(dtype), inputs.to(dtype), None, None,
            [slice(0, 3), slice(3, 8)], projection,
        )  # fmt: skip
        fit(stage, Fitting(ridges=(1.0,)))
        return stage.projection.weight

    exact = refitted(torch.float64, torch.float64)
    plain = refitted(torch.float32, torch.float32)
    assert_no_worse_than_torch(refitted(torch.bfloat16, torch.float32), plain, exact)


def test_the_command_knows_the_methods():
    assert (command.METHODS, command.FOLLOWING) == (METHODS, FOLLOWING)
    assert {"auto", *BY_STEPS} == command.STEPS


def test_a_streamed_original_gives_the_same(tmp_path, ids):
    original = pyprune.load("shape:hidden=20,blocks=4,heads=4,kv_heads=2,head_dim=6,ffn=23,vocab=53")
    original.save(tmp_path / "model")
    streamed = pyprune.load(str(tmp_path / "model"), stream=True)
    plain = pyprune.load(str(tmp_path / "model"))
    results = [pyprune.repair(model, Pruning(blocks=(2,)), ids, "refit-all-o") for model in (streamed, plain)]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*(r.tensors() for r in results), strict=True))


def test_bfloat16_weights_stay_bfloat16(ids):
    original = pyprune.load(SIZES, dtype=torch.bfloat16)
    repaired = pyprune.repair(original, Pruning(blocks=(2,)), ids, "refit-all-o")
    assert {tensor.dtype for _, tensor in repaired.tensors()} == {torch.bfloat16}
    assert isinstance(repaired.blocks[1].ffn, FFN)
