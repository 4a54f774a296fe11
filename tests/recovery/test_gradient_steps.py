"""Block-wise and tail distillation: their losses in float64, what they change, and the bounds of `auto`."""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace

import pytest
import torch

import pyprune
from pyprune import Pruning
from pyprune.ops import native
from pyprune.recovery import fitting, repair_with_report
from pyprune.recovery import tail as tail_module
from pyprune.recovery.fitting import enough_samples
from pyprune.recovery.local_steps import Steps, default_precision
from pyprune.recovery.tail import Head, divergence, last_that_fit
from pyprune.recovery.time_left import TimeLeft
from pyprune.regression.held_out import is_held_out, judging, spread
from pyprune.runtime.sequence import embed, run_block
from tests import seeds
from tests.judge import TINY_OF_MODELS

SIZES = "shape:hidden=20,blocks=5,heads=6,kv_heads=2,head_dim=6,ffn=23,vocab=53"
CUT = Pruning(blocks=(2,))


def last_states(decoder, ids, blocks):
    x = embed(decoder, ids)
    rotation = decoder.rope.tables(ids.shape[1], prompt=ids.shape[1])
    for block in blocks:
        x = run_block(block, x, *rotation, decoder.eps)
    return x.double()


def log_probabilities(states, norm, weight, bias, eps):
    normed = states * (states.square().mean(-1, keepdim=True) + eps).rsqrt() * norm
    logits = normed @ weight.T
    return (logits if bias is None else logits + bias).log_softmax(-1)


@pytest.mark.parametrize("has_bias", [False, True])
def test_the_divergence_and_its_slope_are_autograds(has_bias):
    generator = seeds.generator(8)
    student, teacher = (torch.randn(300, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    norm, weight = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((20,), (53, 20)))
    bias = torch.randn(53, generator=generator, dtype=torch.float64) if has_bias else None
    student.requires_grad_()
    wished, reached = (log_probabilities(states, norm, weight, bias, 1e-5) for states in (teacher, student))
    expected = (wished.exp() * (wished - reached)).sum(-1).mean()
    (slope,) = torch.autograd.grad(expected, student)
    ours = divergence(student, teacher, Head(norm, weight, bias, 1e-5))
    torch.testing.assert_close(ours, expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(3 * ours, student)[0], 3 * slope, rtol=1e-9, atol=1e-12)


def test_tail_lowers_the_divergence_by_the_last_blocks_alone(llama, ids):
    options = {"steps": 60, "tail_blocks": 2, "rate": 3e-3, "precision": "fp32"}
    report = repair_with_report(llama, CUT, ids.repeat(4, 1), "tail", **options)
    pruned = pyprune.apply(llama, CUT)
    (fit,) = report.fits
    assert fit["blocks"] == [3, 4]
    assert report.decoder.blocks[:2] == pruned.blocks[:2]
    held_out = ids.repeat(4, 1)[7::8]
    parts = llama.norm.double(), llama.head.weight.double(), None, llama.eps
    wished = log_probabilities(last_states(llama, held_out, llama.blocks), *parts)
    for name, decoder in (("before", pruned), ("after", report.decoder)):
        reached = log_probabilities(last_states(decoder, held_out, decoder.blocks), *parts)
        expected = float((wished.exp() * (wished - reached)).sum(-1).mean())
        # A sum of differences of logarithms of probabilities, which are about log(vocabulary) each.
        assert abs(fit[name] - expected) <= TINY_OF_MODELS * math.log(llama.vocab_size)
    assert fit["after"] < fit["before"]


def test_blockwise_reports_the_streams_relative_error(llama, ids):
    report = repair_with_report(llama, CUT, ids, "blockwise", steps=5, precision="fp32")
    held_out = ids[7::8]
    first = report.fits[0]
    assert first["blocks"] == [1]
    target = last_states(llama, held_out, llama.blocks[:3])
    for name, blocks in (("before", llama.blocks[:2]), ("after", report.decoder.blocks[:2])):
        error = last_states(llama, held_out, blocks) - target
        expected = float((error.square().sum(-1) / target.square().sum(-1)).mean())
        assert first[name] == pytest.approx(expected, rel=1e-4)


def test_methods_in_order_are_one_after_the_other(llama, ids):
    at_once = pyprune.repair(llama, CUT, ids, "refit-all-o+blockwise+tail", steps=3)
    decoder = pyprune.apply(llama, CUT)
    for method in ("refit-all-o", "blockwise", "tail"):
        decoder = pyprune.repair(llama, decoder, ids, method, **({} if method == "refit-all-o" else {"steps": 3}))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(at_once.tensors(), decoder.tensors(), strict=True))


def test_closed_forms_of_a_chain_take_enough_windows_and_its_steps_all(llama, ids, monkeypatch):
    monkeypatch.setattr(fitting, "TOKENS_OF_INPUT", 4)
    many, pruned = ids.repeat(4, 1), pyprune.apply(llama, CUT)
    assert max(tensor.shape[1] for _, tensor in pruned.blocks[0].tensors() if tensor.dim() == 2) == 36
    enough = enough_samples(pruned, ids.shape[1])
    assert enough % 8 == 0
    assert (enough - 8) * ids.shape[1] < 4 * 36 <= enough * ids.shape[1] < many.numel()
    at_once = pyprune.repair(llama, CUT, many, "refit-all-o+refit-all+tail", steps=3)
    decoder = pruned
    for name in ("refit-all-o", "refit-all"):
        decoder = pyprune.repair(llama, decoder, many[spread(len(many), enough)], name)
    decoder = pyprune.repair(llama, decoder, many, "tail", steps=3)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(at_once.tensors(), decoder.tensors(), strict=True))


@pytest.mark.parametrize(("samples", "count"), [(1024, 240), (1024, 184), (100, 8), (96, 40), (23, 17)])
def test_some_windows_are_whole_groups_from_all_over(samples: int, count: int):
    taken = spread(samples, count)
    assert count <= len(taken) < count + 8
    assert taken == sorted(set(taken))
    assert [is_held_out(number) for number in taken] == [is_held_out(place) for place in range(len(taken))]
    groups = [number // 8 for number in taken[::8]]
    gaps = [after - before for before, after in zip(groups, [*groups[1:], samples // 8], strict=True)]
    assert groups[0] == 0
    assert max(gaps) - min(gaps) <= 1


def test_all_windows_are_taken_where_there_are_no_more():
    assert spread(23, 23) == spread(23, 99) == list(range(23))
    assert spread(17, 16) == list(range(17))  # both groups, and what is behind them


def test_closed_forms_of_auto_take_enough_windows(llama, ids, monkeypatch):
    monkeypatch.setattr(fitting, "TOKENS_OF_INPUT", 4)
    many, taken = ids.repeat(4, 1), []

    def closed_form(original, pruned, windows, *others, **options):
        taken.append(len(windows))
        return plain_closed_form(original, pruned, windows, *others, **options)

    repair_module = importlib.import_module("pyprune.recovery.repair")  # the package has a function of that name
    plain_closed_form = repair_module.closed_form
    monkeypatch.setattr(repair_module, "closed_form", closed_form)
    pyprune.repair(llama, CUT, many, steps=2)
    assert set(taken) == {enough_samples(pyprune.apply(llama, CUT), ids.shape[1])}


def test_a_closed_form_alone_takes_all_windows(llama, ids, monkeypatch):
    expected = pyprune.repair(llama, CUT, ids.repeat(4, 1), "refit-all-o")
    monkeypatch.setattr(fitting, "TOKENS_OF_INPUT", 4)
    again = pyprune.repair(llama, CUT, ids.repeat(4, 1), "refit-all-o")
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(again.tensors(), expected.tensors(), strict=True))


def test_sixteen_bit_weights_are_fitted_in_float32(ids):
    original = pyprune.load(SIZES, dtype=torch.bfloat16)
    report = repair_with_report(original, CUT, ids, "blockwise+tail", steps=3)
    assert {tensor.dtype for _, tensor in report.decoder.tensors()} == {torch.bfloat16}
    assert all(fit["after"] <= fit["before"] for fit in report.fits)


@pytest.mark.parametrize("method", ["blockwise", "tail"])
def test_products_in_bfloat16_lower_the_same_loss(llama, ids, method):
    # 8 bits of mantissa in each factor; the losses are sums over many of them.
    options = {"steps": 20, "rate": 3e-3}
    wide, narrow = (repair_with_report(llama, CUT, ids, method, precision=p, **options) for p in ("fp32", "bf16"))
    for fit, of_wide in zip(narrow.fits, wide.fits, strict=True):
        assert fit["blocks"] == of_wide["blocks"]
        assert fit["after"] < fit["before"]
    assert narrow.fits[0]["before"] == pytest.approx(wide.fits[0]["before"], rel=2**-4)
    assert narrow.fits[0]["before"] != wide.fits[0]["before"]
    assert {tensor.dtype for _, tensor in narrow.decoder.tensors()} == {torch.float32}


def test_the_default_precision_is_bfloat16_where_that_is_fast(llama, monkeypatch):
    for fast in (False, True):
        monkeypatch.setattr(native, "multiplies_bfloat16", lambda fast=fast: fast)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert default_precision(llama.to(dtype)) == ("bf16" if fast else "fp32")
        assert default_precision(llama.to(torch.float64)) == "fp32"


def test_tail_takes_as_many_blocks_as_memory_holds(llama, ids, monkeypatch):
    blocks = pyprune.apply(llama, CUT).sizes().blocks
    of_block = 16 * sum(tensor.numel() for _, tensor in llama.blocks[0].tensors())
    for free, count in ((None, 4), (3 * 3 * of_block, 3), (3 * 3 * of_block - 3, 2), (0, 1)):
        monkeypatch.setattr(tail_module, "available", lambda device, free=free: free)
        assert last_that_fit(blocks, llama.device) == count
        assert len(repair_with_report(llama, CUT, ids, "tail", steps=1).fits[0]["blocks"]) == count


def test_each_sample_is_seen_before_any_is_seen_again():
    steps = Steps(count=7, rate=1.0, tokens=60, seed=seeds.seed(2))
    chosen = steps.samples(range(10, 19), batch=steps.batch(20))
    assert [len(samples) for samples in chosen] == [3] * 7
    for start in (0, 3):
        assert sorted(sample for samples in chosen[start : start + 3] for sample in samples) == list(range(10, 19))
    assert chosen == steps.samples(range(10, 19), batch=3)
    assert steps.rate_at(6) == pytest.approx(0.7 / 7)


@pytest.mark.parametrize("count", [1, 3, 4, 20, 99])
def test_steps_take_the_windows_that_they_see_and_those_held_out_among_them(count: int):
    steps = Steps(count, 1.0, tokens=50)
    needed = steps.windows(25, 10_000)
    fitting = [sample for sample in range(needed) if not is_held_out(sample)]
    assert len(fitting) >= 2 * count > len(fitting) - 7
    assert len(fitting) < needed
    assert steps.windows(25, needed - 1) == needed - 1
    seen = [sample for samples in steps.samples(fitting, 2) for sample in samples]
    assert len(seen) == len(set(seen)) == 2 * count


@pytest.mark.parametrize(
    ("samples", "seq_len", "count"), [(7, 9, 0), (24, 128, 3), (1024, 128, 32), (400, 100, 41), (160, 2048, 8)]
)
def test_as_many_held_out_windows_judge_as_tell(samples: int, seq_len: int, count: int):
    chosen = judging(samples, seq_len)
    assert len(set(chosen)) == len(chosen) == count
    assert all(is_held_out(sample) for sample in chosen)
    if count:
        assert chosen[0] == 7
        assert samples - chosen[-1] <= 8 * -(-samples // (8 * count))


def test_all_judgements_are_by_the_same_few_windows(llama, ids, monkeypatch):
    monkeypatch.setattr("pyprune.regression.held_out.JUDGING_TOKENS", 2 * ids.shape[1])
    monkeypatch.setattr("pyprune.regression.held_out.JUDGING_WINDOWS", 1)
    module, judged = importlib.import_module("pyprune.recovery.repair"), []

    def recorded(decoder, windows):
        judged.append(windows)
        return pyprune.perplexity(decoder, windows)

    monkeypatch.setattr(module, "perplexity", recorded)
    many = ids.repeat(4, 1)[torch.randperm(4 * len(ids), generator=seeds.generator(6))]
    repair_with_report(llama, CUT, many, steps=2)
    assert len(judged) >= 4  # the original, the pruned model, and what auto tries
    assert len(many[7::8]) > 2
    assert all(torch.equal(windows, many[[7, 7 + 8 * (len(many) // 16)]]) for windows in judged)


def test_blocks_that_both_models_have_alike_are_run_once(llama, ids, monkeypatch):
    runs = []

    def counted(block, *rest):
        runs.append(block.index)
        return run_block(block, *rest)

    monkeypatch.setattr(tail_module.sequence, "run_block", counted)
    options = {"steps": 3, "tail_blocks": 2, "precision": "fp32"}
    shared = repair_with_report(llama, CUT, ids, "tail", **options).decoder
    assert sorted(runs) == [0, 1, 2, 3, 4]
    runs.clear()
    monkeypatch.setattr(tail_module, "equal_prefix", lambda *_: 0)
    apart = repair_with_report(llama, CUT, ids, "tail", **options).decoder
    assert sorted(runs) == [0, 0, 1, 1, 2, 3, 4]
    for (name, tensor), (_, other) in zip(shared.tensors(), apart.tensors(), strict=True):
        assert torch.equal(tensor, other), name


@pytest.mark.parametrize("method", ["blockwise", "tail"])
def test_few_steps_compute_no_states_of_windows_that_they_do_not_see(llama, monkeypatch, method: str):
    ids = torch.randint(0, 53, (24, 257), generator=seeds.generator(3))
    seen = {"blockwise": 9, "tail": 3}[method]  # by three steps
    module = importlib.import_module("pyprune.recovery.repair")
    fit, taken = getattr(module, method), []

    def recorded(original, pruned, windows, *rest, **options):
        taken.append(windows)
        return fit(original, pruned, windows, *rest, **options)

    monkeypatch.setattr(module, method, recorded)
    repair_with_report(llama, CUT, ids, method, steps=3)
    [windows] = taken
    assert torch.equal(windows, ids[: -(-seen // 7) * 8])  # of eight windows one is held out


def test_no_time_left_begins_nothing(llama, ids, tmp_path):
    report = repair_with_report(llama, CUT, ids, minutes=1e-9)
    assert (report.method, report.tried, report.fits) == ("none", {}, [])
    settings = {"minutes": 60.0, "steps": 2, "resume": tmp_path / "journal"}
    report = repair_with_report(llama, CUT, ids, **settings)
    assert len(report.tried) in (2, 5)  # one closed form where it helps, else four, and tail
    assert repair_with_report(llama, CUT, ids, **settings).tried == report.tried


def test_what_there_was_time_for_stays_when_a_repair_goes_on(llama, ids, tmp_path, monkeypatch):
    settings = {"minutes": 60.0, "steps": 2, "resume": tmp_path / "journal"}
    begun = repair_with_report(llama, CUT, ids, **settings)
    with monkeypatch.context() as no_time:
        no_time.setattr(TimeLeft, "is_enough_for_closed_form", lambda *_: False)
        no_time.setattr(TimeLeft, "steps", lambda *_, **__: 0)
        resumed = repair_with_report(llama, CUT, ids, **settings)
        assert repair_with_report(llama, CUT, ids, minutes=60.0).tried == {}
    assert resumed.tried == begun.tried
    assert (resumed.method, resumed.fits) == (begun.method, begun.fits)


def test_steps_are_those_there_is_time_for(llama, monkeypatch):
    """A forward pass of 1 s over 100 tokens; a step of 50 tokens through two of five blocks and the head."""
    sizes = llama.sizes().blocks
    block = sum(tensor.numel() for _, tensor in sizes[0].tensors())
    head = llama.head.weight.numel()
    a_step = 4 * 0.5 * (2 * block + head) / (5 * block + head)
    monkeypatch.setattr("pyprune.recovery.time_left.time", SimpleNamespace(perf_counter=lambda: 7.0))
    left = TimeLeft(7 + 30.5 * a_step + 1.0, 1.0, llama, 100)

    def fit(count, before=lambda count: 0.0):
        return left.steps(Steps(count, 1.0, tokens=50), 25, sizes[:2], before)

    assert fit(1000) == 30
    assert fit(10) == 10
    assert fit(1000, lambda count: 5 * a_step) == 25
    assert fit(1000, lambda count: 0.25 * a_step * count) == 24
    assert fit(20, lambda count: 0.5 * a_step * count) == 20
    assert fit(21, lambda count: 0.5 * a_step * count) == 20
    assert fit(1000, lambda count: 11 * a_step) == 0  # fewer than 20
    assert left.of_passes(200, sizes[:2], sizes[:1]) == pytest.approx(2 * 3 * block / (5 * block + head))
    with_heads = 2 * (block + 2 * head) / (5 * block + head)
    assert left.of_passes(200, sizes[:1], heads=2) == pytest.approx(with_heads)
    a_pass = 1.5 * 5 * block / (5 * block + head)  # of 100 tokens through the five blocks
    left = TimeLeft(7 + 2 * a_pass, 1.0, llama, 100)
    assert left.is_enough_for_closed_form(150, llama)
    assert not left.is_enough_for_closed_form(150, llama, llama)
