"""Greedy search with a repair after each removal, against the loop that says what it is."""

from __future__ import annotations

import pytest
import torch

from pyprune import InputError, Pruning, SearchResult, apply, load, perplexity, repair, score, search_with_repair
from pyprune.recovery import repaired_search
from tests import seeds

SIZES = "shape:hidden=24,blocks=6,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=97"
KEYS = {"block": "blocks", "mha": "mha", "ffn": "ffn"}


@pytest.fixture(scope="module")
def six():
    return load(SIZES)


@pytest.fixture(scope="module")
def scored():
    return torch.randint(0, 97, (3, 12), generator=seeds.generator(7))


@pytest.fixture(scope="module")
def fitted():
    return torch.randint(0, 97, (17, 13), generator=seeds.generator(8))


def without(units):
    removed = {"blocks": [], "mha": [], "ffn": []}
    for kind, index in units:
        removed[KEYS[kind]].append(index)
    return Pruning(**removed)


def same(one, two):
    return all(torch.equal(a, b) for (_, a), (_, b) in zip(one.tensors(), two.tensors(), strict=True))


def naive(original, ids, fitted, method, rounds, unit="block", left_alone=()):
    """Order, and the perplexity of the repaired model after each removal."""
    units = [(kind, n) for n in range(6) for kind in {"mha+ffn": ("mha", "ffn")}.get(unit, (unit,))]
    remaining = [one for one in units if one not in left_alone]
    model, order, scores = original, [], []
    for _ in range(rounds):
        order.append(min(remaining, key=lambda one: perplexity(apply(model, without([one])), ids)))
        remaining.remove(order[-1])
        model = repair(original, without(order), fitted, method)
        scores.append(perplexity(model, ids))
    return order, scores, model


@pytest.mark.parametrize("method", ["linear", "mean-update", "refit-all-o"])
def test_blocks_go_as_in_the_naive_loop(six, scored, fitted, method: str):
    found = search_with_repair(six, scored, fitted, method, count=3)
    folds = method != "refit-all-o"
    order, scores, model = naive(six, scored, fitted, method, 3, left_alone=[("block", 0)] if folds else [])
    assert found.search.order == order
    assert found.search.scores == pytest.approx(scores, rel=1e-5)
    assert found.search.baseline == pytest.approx(perplexity(six, scored), rel=1e-6)
    assert same(found.decoder, model)
    assert found.decoder.pruning.blocks == found.pruning().blocks == tuple(sorted(index for _, index in order))
    assert [len(step.choices) for step in found.search.steps] == [6 - folds, 5 - folds, 4 - folds]
    assert found.repaired.method == found.search.repair == method


def test_sublayers_go_as_in_the_naive_loop(six, scored, fitted):
    found = search_with_repair(six, scored, fitted, "linear", count=4, unit="mha+ffn")
    order, scores, model = naive(six, scored, fitted, "linear", 4, "mha+ffn", [("mha", 0)])
    assert found.search.order == order
    assert found.search.scores == pytest.approx(scores, rel=1e-5)
    assert same(found.decoder, model)


def test_rounds_go_by_repaired_units_where_asked(six, scored, fitted):
    found = search_with_repair(six, scored, fitted, "linear", count=2, criterion="ppl-after-repair", form="mean-update")
    model, order = six, []
    for step in found.search.steps:
        ranked = score(model, scored, "ppl-after-repair", form="mean-update", fit_ids=fitted)
        order.append(next(unit for unit in ranked.order() if unit != ("block", 0)))
        values = dict(zip(ranked.units, ranked.values, strict=True))
        assert [choice.score for choice in step.choices] == pytest.approx(
            [values[choice.units[0]] for choice in step.choices], rel=1e-6
        )
        model = repair(six, without(order), fitted, "linear")
    assert found.search.order == order
    assert found.search.criterion == "ppl-after-repair"


def test_a_share_ends_where_it_is_nearest_with_the_model_of_those_steps(six, scored, fitted):
    found = search_with_repair(six, scored, fitted, "refit-all-o", ratio=0.3, unit="mha+ffn", protect="last=1")
    assert same(found.decoder, repair(six, found.pruning(), fitted, "refit-all-o"))
    assert found.search.scores[-1] == pytest.approx(perplexity(found.decoder, scored), rel=1e-6)
    assert all(index != 5 for _, index in found.search.order)


def test_padding_is_not_scored(six, scored, fitted):
    mask = torch.ones_like(scored)
    mask[1, 5:] = 0
    found = search_with_repair(six, scored, fitted, "linear", count=2, attention_mask=mask)
    assert found.search.scores[-1] == pytest.approx(perplexity(found.decoder, scored, mask), rel=1e-6)


def test_an_interrupted_search_goes_on_and_repeats_no_round(monkeypatch, six, scored, fitted, tmp_path):
    folder = tmp_path / "journal"
    expected = search_with_repair(six, scored, fitted, "linear", count=3)
    repaired = []

    def counted(original, pruning, *arguments, **options):
        repaired.append(pruning.blocks)
        if len(repaired) == 2:
            raise KeyboardInterrupt
        return original_repair(original, pruning, *arguments, **options)

    original_repair = repaired_search.repair_with_report
    monkeypatch.setattr(repaired_search, "repair_with_report", counted)
    with pytest.raises(KeyboardInterrupt):
        search_with_repair(six, scored, fitted, "linear", count=3, resume=folder)
    assert {path.name for path in folder.glob("round-*.json")} == {"round-0.json", "round-1.json"}
    resumed = search_with_repair(six, scored, fitted, "linear", count=3, resume=folder)
    assert [len(blocks) for blocks in repaired] == [1, 2, 2, 3]
    assert resumed.search == expected.search
    assert same(resumed.decoder, expected.decoder)
    for change in ({"repair": "refit"}, {"protect": [1]}, {"ridge": 1.0}):
        arguments = {"repair": "linear", "count": 3, "resume": folder, **change}
        with pytest.raises(InputError, match=r"belongs to a search of another model, text or options"):
            search_with_repair(six, scored, fitted, arguments.pop("repair"), **arguments)


def test_a_search_that_was_killed_at_once_goes_on(six, scored, fitted, tmp_path):
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / ".subject.json.abc.part").touch()
    found = search_with_repair(six, scored, fitted, "mean-update", count=1, resume=tmp_path / "journal")
    assert found.search == search_with_repair(six, scored, fitted, "mean-update", count=1).search


def test_rounds_of_another_version_are_refused(monkeypatch, six, scored, fitted, tmp_path):
    search_with_repair(six, scored, fitted, "mean-update", count=1, resume=tmp_path / "journal")
    monkeypatch.setattr(repaired_search, "VERSION", repaired_search.VERSION + 1)
    with pytest.raises(InputError, match="belongs to a search of another model, text or options"):
        search_with_repair(six, scored, fitted, "mean-update", count=1, resume=tmp_path / "journal")


def test_a_result_survives_its_file_and_the_original_its_search(six, scored, fitted, tmp_path):
    before = [(name, tensor.clone()) for name, tensor in six.tensors()]
    found = search_with_repair(six, scored, fitted, "mean-update", count=1)
    found.search.to_json(tmp_path / "search.json")
    assert SearchResult.from_json(tmp_path / "search.json") == found.search
    found.decoder.save(tmp_path / "model")
    again = load(str(tmp_path / "model"))
    assert same(again, found.decoder)
    assert again.pruning.blocks == found.pruning().blocks
    assert all(torch.equal(tensor, old) for (_, tensor), (_, old) in zip(six.tensors(), before, strict=True))


def test_progress_reaches_its_end_step_by_step(six, scored, fitted):
    reports = []
    search_with_repair(
        six, scored, fitted, "linear", count=2, progress=lambda done, total: reports.append((done, total))
    )
    assert reports[-1][0] == reports[-1][1]
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(repair="train"), "method 'train'"),
        (dict(repair="stat"), "method stat: is for removed heads and neurons; a search removes units"),
        (dict(ridge=-1), "ridge -1"),
        (dict(weighting="all"), "weighting 'all'"),
        (dict(repair="refit", steps=3), "steps 3: belongs to method auto"),
        (dict(repair="auto", minutes=1.0, resume="rounds"), "minutes 1.0: is for a search in one process without"),
        (dict(criterion="taylor"), "criterion: 'taylor' given; a search with repairs accepts ppl, ppl-after-repair"),
        (dict(form="linear"), "form: 'linear' given, but criterion ppl takes"),
        (dict(unit="head"), "unit: 'head' given"),
        (dict(count=None), "exactly one of them is expected"),
        (dict(count=6), "all 6 units would be removed; at least one must stay"),
        (dict(protect="1,2,3,4,5", count=1), "nothing but .*'block', 0.* could be removed"),
        (dict(repair_ids=torch.zeros(7, 5, dtype=torch.int64)), "7 samples: every 8th is held out"),
        (dict(repair_ids=torch.full((8, 5), 97)), "token id 97"),
    ],
)
def test_bad_input_is_refused_before_any_work(six, scored, fitted, change: dict, message: str):
    arguments = {"input_ids": scored, "repair_ids": fitted, "repair": "linear", "count": 2, **change}
    with pytest.raises(InputError, match=message):
        search_with_repair(six, **arguments, progress=lambda *_: pytest.fail("work was done"))


def test_an_unknown_option_is_refused_before_any_work(six, scored, fitted):
    with pytest.raises(TypeError, match="'ridges' is no option of a repair: ridge, "):
        search_with_repair(
            six, scored, fitted, "refit", count=1, ridges=1.0, progress=lambda *_: pytest.fail("work was done")
        )


def test_windows_that_score_and_repair_are_refused(six, scored, fitted):
    with pytest.raises(InputError, match="number 15 is scored too"):
        search_with_repair(six, fitted[:2], torch.cat([fitted[2:], fitted[:1], fitted[:1]]), "linear", count=1)


def test_a_file_in_the_place_of_the_journal_is_left_alone(six, scored, fitted, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "note").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(InputError, match=r"a folder for the rounds|not a journal of a search"):
            search_with_repair(six, scored, fitted, "linear", count=1, resume=tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "note").read_text() == "mine"
