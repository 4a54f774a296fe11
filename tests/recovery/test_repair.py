"""Repairs against independent float64 computations on tiny models, and what they leave alone."""

from __future__ import annotations

import errno
import importlib
import json
import math
import os

import pytest
import torch

import pyprune
from pyprune import InputError, Pruning
from pyprune.commands import repair as command
from pyprune.models.decoder import FFN, Linear
from pyprune.recovery import repair_with_report
from pyprune.recovery.fitting import Fitting
from pyprune.recovery.methods import BY_STEPS, FOLLOWING, METHODS
from pyprune.recovery.refit import refit
from pyprune.recovery.repair import Repaired
from pyprune.recovery.streams import Stage, output_projection
from pyprune.regression import normal_equations
from pyprune.regression.states import States
from pyprune.regression.token_weights import token_weights
from pyprune.runtime.sequence import attention_context, embed, ffn_activation, run_block
from tests import seeds
from tests.judge import TINY_OF_MODELS, assert_no_worse_than_torch, assert_same_but_for_rounding

SIZES = "shape:hidden=20,blocks=5,heads=6,kv_heads=2,head_dim=6,ffn=23,vocab=53"
FAMILIES = {
    "llama": SIZES,
    "tied": SIZES + ",tied=1",
    "mistral": SIZES + ",family=mistral,window=5",
    "qwen2": SIZES + ",family=qwen2",
    "qwen3": SIZES + ",family=qwen3",
}
RIDGE = 0.05
GONE = [0, 4, 7, 22]
STAY = [neuron for neuron in range(23) if neuron not in GONE]
"""Neurons of block 1."""


@pytest.fixture(params=FAMILIES)
def original(request):
    return pyprune.load(FAMILIES[request.param], dtype=torch.float32)


@pytest.fixture
def llama():
    return pyprune.load(SIZES, dtype=torch.float32)


@pytest.fixture
def ids():
    return torch.randint(0, 53, (24, 17), generator=seeds.generator(3))


class Run:
    """Streams of a decoder in the operators' float32, everything after that in float64."""

    def __init__(self, decoder, ids):
        self.decoder, self.x = decoder, embed(decoder, ids)
        self.rotation = decoder.rope.tables(ids.shape[1], prompt=ids.shape[1])

    def block(self, block):
        self.x = run_block(block, self.x, *self.rotation, self.decoder.eps)
        return self.x

    def context(self, mha):
        return attention_context(mha, self.x, *self.rotation, self.decoder.eps)


def ridge_fit(inputs, wished, weights, present, bias):
    """Weighted ridge regression on stacked rows, by QR of the design in place of normal equations."""
    a, y, w = (t.double().flatten(0, 1) for t in (inputs, wished, weights.unsqueeze(-1)))
    if bias is not None:
        a = torch.cat([a, torch.ones(len(a), 1, dtype=torch.float64)], 1)
        present = torch.cat([present, bias.unsqueeze(1)], 1)
    present = present.double()
    size = a.shape[1]
    mean = (a.square() * w).sum() / size
    penalty = torch.full((size,), (RIDGE * float(mean)) ** 0.5, dtype=torch.float64)
    if bias is not None:
        penalty[-1] = 0
    design = torch.cat([a * w.sqrt(), torch.diag(penalty)])
    wish = torch.cat([(y - a @ present.T) * w.sqrt(), torch.zeros(size, y.shape[1], dtype=torch.float64)])
    return present + torch.linalg.lstsq(design, wish, driver="gelsd").solution.T


def plain_fit(inputs, wished, weights, present, bias):
    """The same by PyTorch's products in float32: how much those lose depends on the ridge and on the inputs."""
    root = weights.flatten().sqrt().unsqueeze(1)
    a, y = (t.flatten(0, 1) * root for t in (inputs, wished))
    if bias is not None:
        a, present = torch.cat([a, root], 1), torch.cat([present, bias.unsqueeze(1)], 1)
    gram, cross, present = (a.T @ a).double(), (a.T @ y).double(), present.double()
    penalty = torch.full((len(gram),), RIDGE * float(gram.diagonal().mean()), dtype=torch.float64)
    if bias is not None:
        penalty[-1] = 0
    return present + torch.linalg.solve(gram + torch.diag(penalty), cross - gram @ present.T).T


def assert_fitted(linear, *design, onto=None):
    """The projection is the ridge regression of these rows, times `onto` where there is one."""
    exact, plain = ridge_fit(*design), plain_fit(*design)
    if onto is not None:
        exact, plain = exact @ onto.double(), plain @ onto.double()
    weight = linear.weight if linear.bias is None else torch.cat([linear.weight, linear.bias.unsqueeze(1)], 1)
    assert_no_worse_than_torch(weight, plain, exact, TINY_OF_MODELS)


def weights_of(target):
    return 1 / target.square().mean(-1)


def streams_at_ffn(original, ids):
    """Of block 1's FFN in the original: the run up to behind it, its down's input, the stream before and behind."""
    run = Run(original, ids)
    run.block(original.blocks[0])
    block = original.blocks[1]
    before = run.block(type(block)(1, block.mha, None))
    activation = ffn_activation(block.ffn, before, original.eps)
    return run, activation, before, run.block(type(block)(1, None, block.ffn))


def streams_at_cut(original, ids):
    """Without block 2: the FFN before the cut, its input, the stream it adds to, and the wish, of the original."""
    run, inputs, middle, x_pre = streams_at_ffn(original, ids)
    return original.blocks[1].ffn, inputs, middle, x_pre, run.block(original.blocks[2])


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


def narrowing():
    return Pruning(neurons={1: GONE}, kv_groups={3: (1,)})


def test_flap_bias_is_flaps_formula(original, ids):
    repaired = pyprune.repair(original, narrowing(), ids, "flap-bias")
    _, activation, _, _ = streams_at_ffn(original, ids)
    down = original.blocks[1].ffn.down
    old = 0 if down.bias is None else down.bias
    plain, exact = (
        old + down.weight.to(dtype)[:, GONE] @ activation.to(dtype).mean((0, 1))[GONE]
        for dtype in (torch.float32, torch.float64)
    )
    assert_no_worse_than_torch(repaired.blocks[1].ffn.down.bias, plain, exact)


def test_stat_folds_what_went_into_what_stays(original, ids):
    """Without a ridge it is W_K + W_R T, T the least squares from the inputs that stay to those that went."""
    repaired = pyprune.repair(original, narrowing(), ids, "stat", ridge=0, weighting="equal", exact=True)
    run = Run(original, ids)
    for block in original.blocks[:3]:
        run.block(block)
    context, weight = run.context(original.blocks[3].mha).flatten(0, 1), original.blocks[3].mha.o.weight

    def folded(context, weight):
        fold = torch.linalg.lstsq(context[:, :18], context[:, 18:], driver="gelsd").solution
        return weight[:, :18] + weight[:, 18:] @ fold.T

    exact = folded(context.double(), weight.double())
    assert_no_worse_than_torch(repaired.blocks[3].mha.o.weight, folded(context, weight), exact, TINY_OF_MODELS)


@pytest.mark.parametrize("method", ["refit", "refit-all", "refit-all-o"])
def test_a_narrowed_projection_is_refitted_to_the_originals_stream(original, ids, method):
    repaired = pyprune.repair(original, Pruning(neurons={1: GONE}), ids, method, ridge=RIDGE)
    _, activation, before, target = streams_at_ffn(original, ids)
    down = original.blocks[1].ffn.down
    design = activation[..., STAY], target - before, weights_of(target), down.weight[:, STAY], down.bias
    assert_fitted(repaired.blocks[1].ffn.down, *design)


def test_mean_update_adds_what_lost_neurons_brought(original, ids):
    repaired = pyprune.repair(original, Pruning(neurons={1: GONE}), ids, "mean-update")
    _, activation, _, _ = streams_at_ffn(original, ids)
    down = original.blocks[1].ffn.down
    expected = activation.double()[..., GONE].mean((0, 1)) @ down.weight.double()[:, GONE].T
    assert_same_but_for_rounding(repaired.blocks[1].ffn.down.bias, expected + (0 if down.bias is None else down.bias))


def test_stat_folds_lost_neurons(original, ids):
    pruning = Pruning(neurons={1: GONE})
    repaired = pyprune.repair(original, pruning, ids, "stat", ridge=0, weighting="equal", exact=True)
    _, activation, _, _ = streams_at_ffn(original, ids)
    rows, weight = activation.flatten(0, 1), original.blocks[1].ffn.down.weight

    def folded(rows, weight):
        fold = torch.linalg.lstsq(rows[:, STAY], rows[:, GONE], driver="gelsd").solution
        return weight[:, STAY] + weight[:, GONE] @ fold.T

    exact = folded(rows.double(), weight.double())
    assert_no_worse_than_torch(repaired.blocks[1].ffn.down.weight, folded(rows, weight), exact, TINY_OF_MODELS)


def test_float16_weights_get_the_fit_of_their_values(llama, ids):
    half = llama.to(dtype=torch.float16)
    same_values = half.to(dtype=torch.float32)
    repaired, exact = (
        pyprune.repair(model, Pruning(blocks=(2,)), ids, "refit", ridge=RIDGE) for model in (half, same_values)
    )
    weight, expected = (model.blocks[1].ffn.down.weight for model in (repaired, exact))
    assert weight.dtype == torch.float16
    torch.testing.assert_close(weight.float(), expected, rtol=2**-10, atol=1e-4)


@pytest.fixture
def compensated(llama, ids):
    """A narrowed model whose biases hold what FLAP's compensation adds, of these windows."""
    plain = pyprune.repair(llama, narrowing(), ids, "flap-bias")
    assert plain.blocks[1].ffn.down.bias is not None
    return plain


def test_flap_bias_does_not_add_again_what_the_pruning_added(llama, ids, compensated):
    again = pyprune.repair(llama, compensated, ids, "flap-bias")
    for kind, block in (("ffn", 1), ("mha", 3)):
        before, after = (output_projection(getattr(m.blocks[block], kind)).bias for m in (compensated, again))
        assert_same_but_for_rounding(after, before.double())
        assert float(before.norm()) > 0


def test_stat_leaves_to_the_weights_what_the_compensation_does_not_bring(llama, ids, compensated):
    repaired = pyprune.repair(llama, compensated, ids, "stat", ridge=0, weighting="equal", exact=True)
    run = Run(llama, ids)
    for block in llama.blocks[:3]:
        run.block(block)
    context, weight = run.context(llama.blocks[3].mha).flatten(0, 1), llama.blocks[3].mha.o.weight
    bias = compensated.blocks[3].mha.o.bias

    def fitted(dtype):
        inputs, target = context.to(dtype), context.to(dtype) @ weight.to(dtype).T - bias.to(dtype)
        return torch.linalg.lstsq(inputs[:, :18], target, driver="gelsd").solution.T

    assert_no_worse_than_torch(
        repaired.blocks[3].mha.o.weight, fitted(torch.float32), fitted(torch.float64), TINY_OF_MODELS
    )
    assert torch.equal(repaired.blocks[3].mha.o.bias, bias)
    without = pyprune.repair(llama, narrowing(), ids, "stat", ridge=0, weighting="equal", exact=True)
    assert not torch.allclose(without.blocks[3].mha.o.weight, repaired.blocks[3].mha.o.weight)


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
    assert [name for name in report.tried if "+" not in name and name not in ("blockwise", "tail")] == closed
    best_closed = min(closed, key=report.tried.__getitem__)
    is_repaired = report.tried[best_closed] < report.perplexities[1]
    start = f"{best_closed}+" if is_repaired else ""
    assert f"{start}blockwise" in report.tried
    assert any(name.endswith("tail") for name in report.tried)
    assert len(report.tried) == len(closed) + 2
    assert report.perplexities[2] == min(best, report.perplexities[1])
    assert not report.harms
    assert (report.method == "none") == (best >= report.perplexities[1])
    held_out = ids[7::8]
    assert report.perplexities[2] == pyprune.perplexity(report.decoder, held_out)


def test_padding_changes_nothing(llama, ids):
    """Zero neurons up to the original's own width: as if they were not there."""
    removed = {1: (0, 4, 7)}
    for method in ("refit", "stat"):
        plain = pyprune.repair(llama, Pruning(neurons=removed), ids, method, ridge=1e-3)
        padded = pyprune.repair(llama, Pruning(neurons=removed, pad_to=23), ids, method, ridge=1e-3)
        assert padded.blocks[1].ffn.width == 23
        weight = padded.blocks[1].ffn.down.weight
        assert not bool(weight[:, 20:].any())
        difference = (weight[:, :20] - plain.blocks[1].ffn.down.weight).abs().max()
        # The ridge is relative to the mean over inputs, which zeros lower.
        assert float(difference / weight.abs().max()) < 0.05


def test_an_original_that_is_narrow_itself(llama, ids):
    """What stays is looked up among what the original has."""
    narrow = pyprune.apply(llama, Pruning(neurons={1: (0, 2)}))
    pruned = pyprune.apply(narrow, Pruning(neurons={1: (0, 2, 9)}))
    stat = pyprune.repair(narrow, pruned, ids, "stat", ridge=1e6)  # a ridge so large leaves the weights as they are
    assert torch.allclose(stat.blocks[1].ffn.down.weight, pruned.blocks[1].ffn.down.weight, atol=1e-5)
    with_bias = pyprune.repair(narrow, pruned, ids, "flap-bias")
    run = Run(narrow, ids)
    run.block(narrow.blocks[0])
    middle = run.block(type(narrow.blocks[1])(1, narrow.blocks[1].mha, None))
    mean = ffn_activation(narrow.blocks[1].ffn, middle, narrow.eps).double().mean((0, 1))[7]  # 9 less 0 and 2
    expected = narrow.blocks[1].ffn.down.weight.double()[:, 7] * mean
    assert_same_but_for_rounding(with_bias.blocks[1].ffn.down.bias, expected)


def test_the_last_block_folds_into_the_one_before(llama, ids):
    repaired = pyprune.repair(llama, Pruning(blocks=(4,)), ids, "refit", ridge=RIDGE)
    assert not torch.equal(repaired.blocks[3].ffn.down.weight, llama.blocks[3].ffn.down.weight)


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


def test_inputs_that_are_always_zero_keep_their_weights_without_a_ridge(llama):
    generator = seeds.generator(6)
    a, y = (torch.randn(60, n, generator=generator, dtype=torch.float64) for n in (5, 3))
    old = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    sums = normal_equations.NormalEquations(7, 3)
    sums.add(torch.nn.functional.pad(a, (0, 2)), y, torch.ones(60, dtype=torch.float64))
    fit = normal_equations.fit_linear(Linear(old), sums, sums, (0.0,))
    torch.testing.assert_close(fit.linear.weight[:, :5], torch.linalg.lstsq(a, y).solution.T)
    torch.testing.assert_close(fit.linear.weight[:, 5:], old[:, 5:])


def test_streams_in_bfloat16_are_fitted_in_float32():
    """As they are on a GPU: the same values give the same fit, whatever their dtype."""
    generator = seeds.generator(7)
    before, inputs = (torch.randn(8, 6, n, generator=generator).to(torch.bfloat16) for n in (20, 23))
    target = (before + 0.02 * torch.randn(8, 6, 20, generator=generator)).to(torch.bfloat16)
    sublayer = pyprune.load(SIZES).blocks[1].ffn

    def refitted(dtype, of_projection):
        projection = Linear(torch.zeros(20, 23, dtype=of_projection))
        stage = Stage(
            (1, "ffn"), sublayer, sublayer, True, before.to(dtype), target.to(dtype), inputs.to(dtype), None, None,
            [slice(0, 3), slice(3, 8)], projection,
        )  # fmt: skip
        return refit(stage, Fitting(ridges=(1.0,))).linear.weight

    exact = refitted(torch.float64, torch.float64)
    plain = refitted(torch.float32, torch.float32)
    assert_no_worse_than_torch(refitted(torch.bfloat16, torch.float32), plain, exact)


def test_sums_of_parts_are_the_sums_of_all(llama):
    generator = seeds.generator(5)
    a, y = (torch.randn(700, n, generator=generator, dtype=torch.float64) for n in (530, 7))
    w = torch.rand(700, generator=generator, dtype=torch.float64)
    whole, parts = (normal_equations.NormalEquations(530, 7, bias=True) for _ in range(2))
    whole.add(a, y, w)
    for rows in (slice(0, 300), slice(300, 700)):
        parts.add(a[rows], y[rows], w[rows])
    ones = torch.cat([a, torch.ones(700, 1, dtype=torch.float64)], 1)
    for sums in (whole, parts):
        torch.testing.assert_close(sums.gram, ones.T @ (ones * w[:, None]))
        torch.testing.assert_close(sums.cross, ones.T @ (y * w[:, None]))
    weight = torch.randn(7, 531, generator=generator, dtype=torch.float64)
    missing = ((ones @ weight.T - y).square() * w[:, None]).sum() / (y.square() * w[:, None]).sum()
    assert whole.error(weight) == pytest.approx(float(missing), rel=1e-10)


def test_relative_weights_forget_no_token_and_own_none():
    target = torch.tensor([[[300.0, 400.0], [3.0, 4.0], [0.0, 0.0]]])
    weights = token_weights(target, "relative", 1.0)
    torch.testing.assert_close(weights * target.square().mean(-1), torch.tensor([[1.0, 1.0, 0.0]]))
    assert token_weights(target, "relative", 0.0)[0, 0] == 0


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
