"""ppl-after-repair by its definition: each unit left out and repaired by hand in float64, and as `repair` does it."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace

import pytest
import torch
from plain import FAMILIES, SIZES, ids, padding, token_losses

from pyprune import InputError, Pruning, apply, depth, load, perplexity, repair, score, search, to_transformers
from pyprune.models.decoder import Linear
from pyprune.regression.held_out import fitted_windows
from pyprune.scoring import repaired_removals
from pyprune.scoring.calibration import random_windows, set_apart
from pyprune.scoring.process_group import ProcessGroup
from pyprune.scoring.repaired_removals import FORMS, fitted_repairs
from tests import seeds

NAME = "ppl-after-repair"
searching = importlib.import_module("pyprune.scoring.searches.search")  # the package has a function of that name
RIDGE = 0.05
KEYS = {"block": "blocks", "mha": "mha", "ffn": "ffn"}


@pytest.fixture
def scored():
    return ids(samples=5, seed=1)


@pytest.fixture
def fit_ids():
    return ids(samples=17, tokens=11, seed=2)


def naive(decoder, input_ids, fit_ids, form, units):
    """The perplexity of each model that `repair` makes; what begins the model is left out without a repair."""
    first = {("block", decoder.blocks[0].index)}
    first.add(("mha" if decoder.blocks[0].mha is not None else "ffn", decoder.blocks[0].index))
    values = []
    for kind, index in units:
        pruning = Pruning(**{KEYS[kind]: [index]})
        unrepaired = (kind, index) in first
        model = apply(decoder, pruning) if unrepaired else repair(decoder, pruning, fit_ids, form)
        values.append(perplexity(model, input_ids))
    return values


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unit", ["block", "mha", "ffn", "mha+ffn"])
def test_scores_are_those_of_the_models_that_repair_makes(scored, fit_ids, form: str, unit: str):
    decoder = load(SIZES)
    scores = score(decoder, scored, NAME, unit, form=form, fit_ids=fit_ids)
    assert scores.values == pytest.approx(naive(decoder, scored, fit_ids, form, scores.units), rel=1e-5)
    assert scores.baseline == pytest.approx(perplexity(decoder, scored), rel=1e-6)
    assert scores.options["form"] == form
    assert scores.options["windows"] == [17, 5]
    plain = score(decoder, scored, unit=unit).values
    if unit != "ffn":  # nothing stands before the first one
        assert scores.values[0] == pytest.approx(plain[0], rel=1e-6)
    assert scores.values[1:] != pytest.approx(plain[1:], rel=1e-4)


def test_a_pruned_model_is_scored_by_what_it_still_has(scored, fit_ids):
    pruned = apply(load(SIZES), Pruning(blocks=[1], mha=[0], ffn=[2], neurons={3: range(4)}))
    for form in FORMS:
        scores = score(pruned, scored, NAME, "mha+ffn", form=form, fit_ids=fit_ids)
        assert scores.units == [("ffn", 0), ("mha", 2), ("mha", 3), ("ffn", 3)]
        assert scores.values == pytest.approx(naive(pruned, scored, fit_ids, form, scores.units), rel=1e-5)


def streams(decoder, fit_ids):
    """The stream before each attention and each FFN, and behind the last block, of transformers' model in float64."""
    model = to_transformers(decoder.to(torch.float64).map(torch.clone), "eager")
    taken = []
    hooks = []
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            hooks.append(norm.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0])))
    hooks.append(model.model.norm.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0])))
    with torch.no_grad():
        model(fit_ids)
    for hook in hooks:
        hook.remove()
    return taken


def by_hand(decoder, input_ids, fit_ids, form, index):
    """The float64 perplexity without a block behind the first, its repair from plain least squares on stacked rows."""
    taken = streams(decoder, fit_ids)
    before, pre, post = taken[2 * index - 1], taken[2 * index], taken[2 * index + 2]
    wide = decoder.to(torch.float64).map(torch.clone)
    down = wide.blocks[index - 1].ffn.down
    if form == "mean-update":
        missing = (post - pre).mean((0, 1))
        down = Linear(down.weight, missing if down.bias is None else down.bias + missing)
    else:
        fitted = fitted_windows(len(fit_ids))
        moved, wished, weights = (
            x[fitted].flatten(0, 1) for x in (pre - before, post - before, 1 / post.square().mean(-1, keepdim=True))
        )
        hidden = moved.shape[1]
        penalty = RIDGE * float((moved.square() * weights).sum() / hidden)
        eye = torch.eye(hidden, dtype=torch.float64)
        design = torch.cat([moved * weights.sqrt(), penalty**0.5 * eye])
        wish = torch.cat([wished * weights.sqrt(), penalty**0.5 * eye])
        map_ = torch.linalg.lstsq(design, wish, driver="gelsd").solution
        down = Linear(map_.T @ down.weight, None if down.bias is None else map_.T @ down.bias)
    blocks = [block for block in wide.blocks if block.index != index]
    blocks[index - 1] = replace(blocks[index - 1], ffn=replace(blocks[index - 1].ffn, down=down))
    shorter = apply(wide, Pruning(blocks=[index]))
    model = to_transformers(shorter, "eager")
    with torch.no_grad():
        layer = model.model.layers[index - 1].mlp.down_proj
        layer.weight.copy_(down.weight)
        if down.bias is not None:
            layer.bias = torch.nn.Parameter(down.bias)
        return math.exp(torch.cat(token_losses(model, input_ids)).mean())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_scored_as_by_hand_in_float64(monkeypatch, scored, fit_ids, family: str, form: str):
    monkeypatch.setattr(repaired_removals, "RIDGES", (RIDGE,))
    decoder = load(FAMILIES[family])
    scores = score(decoder, scored, NAME, form=form, fit_ids=fit_ids)
    expected = [by_hand(decoder, scored, fit_ids, form, index) for index in range(1, 4)]
    assert scores.values[1:] == pytest.approx(expected, rel=1e-5)


def test_without_windows_to_fit_on_every_second_is_fitted_on_and_the_others_scored():
    decoder, input_ids = load(SIZES), ids(samples=7)
    halves = score(decoder, input_ids, NAME)
    expected = score(decoder, input_ids[1::2], NAME, fit_ids=input_ids[::2])
    assert (halves.values, halves.baseline) == (expected.values, expected.baseline)
    assert halves.options["windows"] == [4, 3]
    assert halves.calibration["samples"] == 7


@pytest.mark.parametrize("form", FORMS)
def test_padding_is_neither_fitted_nor_scored(form: str):
    decoder = load(SIZES)
    input_ids = torch.cat([ids(), ids(seed=6)])
    mask = torch.cat([padding(ids()), padding(ids())])
    scores = score(decoder, input_ids, NAME, attention_mask=mask, form=form)
    other = torch.where(mask == 1, input_ids, (input_ids + 7) % 53)
    assert score(decoder, other, NAME, attention_mask=mask, form=form).values == scores.values
    assert score(decoder, input_ids, NAME, form=form).values != pytest.approx(scores.values, rel=1e-4)


@pytest.mark.parametrize("tokens", [2, 3])
def test_few_tokens_and_few_windows_are_enough(tokens: int):
    scores = score(load(SIZES), ids(samples=3, tokens=tokens), NAME)
    assert all(math.isfinite(value) for value in scores.values)
    assert math.isfinite(score(load(SIZES), ids(samples=2, tokens=tokens), NAME, form="mean-update").values[1])


@pytest.mark.parametrize("form", FORMS)
def test_streams_beyond_the_memory_lie_in_a_file_and_change_nothing(fit_ids, form: str):
    decoder = load(SIZES)
    units = [("block", 1), ("mha", 2), ("ffn", 0)]
    expected = fitted_repairs(decoder, fit_ids, None, units, form)
    filed = fitted_repairs(decoder, fit_ids, None, units, form, memory=0)
    assert expected.keys() == filed.keys() == set(units)
    assert all(torch.equal(expected[unit], filed[unit]) for unit in units)


class Rank(ProcessGroup):
    """Rank 0 keeps what it broadcasts; another rank gets that, in its order."""

    def __init__(self, of_rank_zero=None):
        self.kept, self.of_rank_zero = [], of_rank_zero

    def broadcast(self, *tensors):
        for tensor in tensors:
            if self.of_rank_zero is None:
                self.kept.append(tensor.clone())
            else:
                tensor.copy_(self.of_rank_zero.pop(0))


@pytest.mark.parametrize("form", FORMS)
def test_every_process_has_the_fits_of_rank_zero(scored, fit_ids, form: str):
    decoder, units = load(SIZES), [("block", 0), ("block", 1), ("ffn", 2)]
    first = Rank()
    expected = repaired_removals.repaired_removals(decoder, fit_ids, None, units, form, first)
    other = Rank(first.kept)
    result = repaired_removals.repaired_removals(decoder, scored, None, units, form, other)
    assert other.of_rank_zero == []
    assert result.edits == expected.edits
    digests = [{edit: r.digest() for edit, r in one.replacements.items()} for one in (result, expected)]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 2


def test_a_choice_by_it_can_be_searched_and_pruned(scored, fit_ids):
    decoder = load(SIZES)
    scores = score(decoder, scored, NAME, fit_ids=fit_ids, protect="last=1")
    result = search(decoder, scored, "one-shot", count=2, criterion=NAME, fit_ids=fit_ids, protect="last=1")
    assert result.order == scores.order()[:2]
    assert depth(scores, decoder, count=2).blocks == tuple(sorted(index for _, index in result.order))


def test_finished_parts_are_not_computed_again(monkeypatch, scored, fit_ids, tmp_path):
    from pyprune.scoring import cells, footprint

    decoder, journal = load(SIZES), tmp_path / "journal"
    expected = score(decoder, scored, NAME, fit_ids=fit_ids)
    monkeypatch.setattr(cells, "JOURNALED_MULTIPLICATIONS", {"cpu": 1.0, "cuda": 1.0})
    monkeypatch.setitem(footprint.ROWS, "cpu", 9)

    def interrupt(done: int, total: int) -> None:
        if done > 0.8 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(decoder, scored, NAME, fit_ids=fit_ids, resume=journal, progress=interrupt)
    finished = journal.read_text().count("\n")
    assert finished > 1
    for other in ({"form": "mean-update", "fit_ids": fit_ids}, {"fit_ids": fit_ids[1:]}):
        with pytest.raises(InputError, match="fits"):
            score(decoder, scored, NAME, resume=journal, **other)
    resumed = score(decoder, scored, NAME, fit_ids=fit_ids, resume=journal)
    assert resumed.values == pytest.approx(expected.values, rel=1e-6)
    reports = []
    score(decoder, scored, NAME, fit_ids=fit_ids, resume=journal, progress=lambda *report: reports.append(report))
    assert reports[-1] == (2000, 2000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(form="refit"), "form: 'refit' given; criterion ppl-after-repair accepts linear, mean-update"),
        (dict(input_ids=ids(samples=1), fit_ids=None), "1 sample given, but criterion ppl-after-repair fits on some"),
        (dict(input_ids=ids(samples=2), fit_ids=None), "windows to fit on: 1; form linear"),
        (dict(fit_ids=ids(samples=1, seed=9)), "windows to fit on: 1; form linear"),
        (dict(fit_ids=torch.cat([ids(seed=9), ids()])), "windows to fit on: number 4 is scored too"),
        (dict(fit_ids=torch.full((2, 9), 53)), "token id 53"),
        (dict(fit_ids=ids()[0]), "input_ids"),
        (dict(measure="kl"), "measure goes with 'ppl'"),
        (dict(candidates=[Pruning(blocks=[1])]), "candidates goes with 'ppl'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_fitted(change: dict, message: str):
    arguments = {"input_ids": ids(), "criterion": NAME, "fit_ids": ids(samples=8, seed=9), **change}
    with pytest.raises(InputError, match=message):
        score(load(SIZES), progress=lambda *_: pytest.fail("work was done"), **arguments)


def test_models_that_transformers_runs_are_refused():
    from pyprune import TransformersDecoder

    model = to_transformers(load(SIZES))
    with pytest.raises(InputError, match="runs by its own layers"):
        score(TransformersDecoder.of(model), ids(), NAME)


def test_windows_set_apart_are_all_of_them_once():
    windows = random_windows(53, 12, 7, seeds.seed(1))
    few, many = set_apart(windows, 5, 3)
    assert (few.fingerprint["samples"], many.fingerprint["samples"]) == (5, 7)
    assert few.fingerprint["sha256"] != many.fingerprint["sha256"]
    together = sorted(map(tuple, [*few.input_ids.tolist(), *many.input_ids.tolist()]))
    assert together == sorted(map(tuple, windows.input_ids.tolist()))
    assert torch.equal(few.input_ids, set_apart(windows, 5, 3)[0].input_ids)


def test_an_interrupted_search_repeats_no_finished_score(monkeypatch, scored, fit_ids, tmp_path):
    decoder = load(SIZES)
    options = {"count": 2, "criterion": NAME, "fit_ids": fit_ids, "protect": "last=1"}
    expected = search(decoder, scored, "one-shot", **options)
    options["resume"] = tmp_path / "journal"

    def interrupted_after_the_ranking(evaluator, candidates, ranker, progress):
        ranker([(unit,) for unit in candidates.units])
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setitem(searching._METHODS, "one-shot", interrupted_after_the_ranking)
        with pytest.raises(KeyboardInterrupt):
            search(decoder, scored, "one-shot", **options)
    kept = (tmp_path / "journal.scores").read_bytes()
    assert kept.count(b"\n") > 1
    assert search(decoder, scored, "one-shot", **options).order == expected.order
    assert (tmp_path / "journal.scores").read_bytes() == kept  # nothing was scored again
