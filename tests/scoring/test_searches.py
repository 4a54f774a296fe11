"""Searches against their definition: one forward pass of its own for every candidate of every round."""

from __future__ import annotations

import json

import pytest
import torch

from pyprune import InputError, Pruning, SearchResult, apply, load, perplexity, score, search
from pyprune.scoring import evaluator
from pyprune.scoring.footprint import FIXED, pass_bytes
from pyprune.scoring.layered_decoder import LayeredDecoder
from pyprune.scoring.removals import NO_REMOVAL, removal_of, units_of
from pyprune.scoring.similarity import window_distances
from pyprune.scoring.state_store import StateStore
from tests import seeds

S, T = 3, 11
KEYS = {"block": "blocks", "mha": "mha", "ffn": "ffn"}


@pytest.fixture(scope="module")
def seven():
    """Seven blocks, so that a search has rounds to share."""
    return load("shape:hidden=24,blocks=7,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=97")


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    return torch.randint(0, 97, (S, T), generator=seeds.generator(7))


def without(decoder, units):
    removed = {"blocks": [], "mha": [], "ffn": []}
    for kind, index in units:
        removed[KEYS[kind]].append(index)
    return apply(decoder, Pruning(**removed))


def naive_greedy(decoder, ids, unit: str, rounds: int, protected=(), mask=None):
    """Order and perplexities of the loop that the methods' own code runs."""
    remaining = [one for one in units_of(decoder, unit) if one[1] not in protected]
    order, scores = [], []
    for _ in range(rounds):
        values = [perplexity(without(decoder, [*order, one]), ids, mask) for one in remaining]
        best = min(range(len(remaining)), key=values.__getitem__)
        order.append(remaining.pop(best))
        scores.append(values[best])
    return order, scores


@pytest.mark.parametrize("unit", ["block", "mha", "ffn", "mha+ffn"])
def test_greedy_equals_the_naive_loop(seven, samples, unit: str):
    result = search(seven, samples, "greedy", count=4, unit=unit)
    order, scores = naive_greedy(seven, samples, unit, 4)
    assert result.order == order
    assert result.scores == pytest.approx(scores, rel=1e-4)
    assert result.baseline == pytest.approx(perplexity(seven, samples), rel=1e-6)


def test_greedy_with_padding_and_protected_blocks_equals_the_naive_loop(seven, samples):
    mask = torch.ones_like(samples)
    mask[1, :4] = 0
    result = search(seven, samples, "greedy", count=3, protect="first=1,last=2", attention_mask=mask)
    order, scores = naive_greedy(seven, samples, "block", 3, protected=(0, 5, 6), mask=mask)
    assert result.order == order
    assert result.scores == pytest.approx(scores, rel=1e-4)


def test_greedy_goes_on_from_a_pruned_model_in_original_indices(seven, samples):
    pruned = apply(seven, Pruning(blocks=[2], ffn=[4]))
    result = search(pruned, samples, "greedy", count=3, unit="mha+ffn")
    order, scores = naive_greedy(pruned, samples, "mha+ffn", 3)
    assert result.order == order
    assert result.scores == pytest.approx(scores, rel=1e-4)
    assert not {("mha", 2), ("ffn", 2), ("ffn", 4)} & set(result.order)
    assert result.pruning().check(pruned) is None


STATE = S * T * 24 * 4


@pytest.mark.parametrize("states", [0, 1, 3, 7, 15, 1000])
@pytest.mark.parametrize("unit", ["block", "mha+ffn"])
def test_memory_for_states_changes_the_cost_and_nothing_else(seven, samples, states: int, unit: str):
    unlimited = search(seven, samples, "greedy", count=4, unit=unit)
    slots = len(units_of(seven, unit)) + 1
    # The pass takes what it needs of the limit; the states get the rest.
    limit = pass_bytes(LayeredDecoder(seven), slots, S, T, 10_000) + states * STATE
    result = search(seven, samples, "greedy", count=4, unit=unit, memory=limit)
    assert result.order == unlimited.order
    assert result.scores == pytest.approx(unlimited.scores, rel=1e-6)
    assert result.cost.blocks >= unlimited.cost.blocks
    assert result.cost.blocks < result.naive.blocks


def test_states_behind_a_block_that_lacked_a_sublayer_serve_the_next_rounds(seven, monkeypatch):
    # Other windows may choose an order in which no later round needs a state behind such a block.
    ids = torch.randint(0, 97, (S, T), generator=torch.Generator().manual_seed(0))
    narrow = apply(seven, Pruning(mha=(2, 3, 4)))
    options = {"count": 4, "protect": "0,1"}
    result = search(narrow, ids, "greedy", **options)
    monkeypatch.setattr(evaluator, "effective", lambda removed, present: removed)
    forgetful = search(narrow, ids, "greedy", **options)
    assert [step.score for step in result.steps] == [step.score for step in forgetful.steps]
    assert result.cost.blocks < forgetful.cost.blocks


def test_samples_and_candidates_in_parts_change_the_cost_and_nothing_else(seven, samples):
    unlimited = search(seven, samples, "greedy", count=4)
    for limit in (pass_bytes(LayeredDecoder(seven), 8, 1, T, T), pass_bytes(LayeredDecoder(seven), 3, 1, T, T)):
        result = search(seven, samples, "greedy", count=4, memory=limit)
        assert result.order == unlimited.order
        assert result.scores == pytest.approx(unlimited.scores, rel=1e-6)
    assert (
        unlimited.cost.heads == result.cost.heads == 8 + 6 + 5 + 4
    )  # the whole model once, then what is left each round


def test_a_round_computes_only_what_no_earlier_one_has(seven, samples):
    result = search(seven, samples, "greedy", count=2, memory=FIXED * 40)
    first, second = (step.removed[0][1] for step in result.steps)
    one = 7 + sum(6 - n for n in range(7))  # the whole model, and each candidate from where it leaves it
    # Before the removed block p all states are there; a candidate before it goes on from p, one after it from itself.
    two = sum(6 - max(n, first) for n in range(7) if n != first)
    assert result.cost.blocks == one + two
    assert result.naive.blocks == 7 + 7 * 6 + 6 * 5
    assert second != first


def test_the_shared_prefix_is_kept_before_anything_else():
    store = StateStore.within(limit=10 * 100, state_bytes=100, blocks=8, first_removed=range(8))
    state = torch.zeros(25)
    for block in range(1, 8):
        store.offer(block, frozenset({0, 1}), state)  # a candidate
    for block in range(1, 8):
        store.offer(block, NO_REMOVAL, state)
    assert all(store.has(block, NO_REMOVAL) for block in range(1, 8))
    assert store.bytes <= 10 * 100
    few = StateStore.within(limit=3 * 100, state_bytes=100, blocks=8, first_removed=range(8))
    for block in range(1, 8):
        few.offer(block, NO_REMOVAL, state)
    assert [block for block in range(1, 8) if few.has(block, NO_REMOVAL)] == [2, 4, 6]  # spread, not the first ones


def test_a_removal_turns_the_states_of_its_candidate_into_the_shared_prefix():
    store = StateStore.within(limit=1 << 20, state_bytes=100, blocks=4, first_removed=range(4))
    removed, other = frozenset({2, 3}), frozenset({0, 1})
    for block in (2, 3):
        for lacking in (NO_REMOVAL, removed, other):
            store.offer(block, lacking, torch.zeros(25))
    store.offer(1, other, torch.zeros(25))
    store.set_removed(removed)
    assert store.has(2, removed)
    assert store.has(3, removed)
    assert not store.has(2, NO_REMOVAL)
    assert not store.has(2, other)
    assert store.has(1, other)  # before the removed block the candidate is as it was
    assert store.bytes == 3 * 100


def test_one_shot_removes_the_front_of_the_ranking_and_reports_every_step(seven, samples):
    result = search(seven, samples, "one-shot", count=3, unit="mha+ffn", protect=[0])
    ranking = [one for one in score(seven, samples, unit="mha+ffn").order() if one[1] != 0]
    assert result.order == ranking[:3]
    expected = [perplexity(without(seven, ranking[:n]), samples) for n in (1, 2, 3)]
    assert result.scores == pytest.approx(expected, rel=1e-6)
    assert search(seven, samples, "one-shot", count=1).scores == pytest.approx(
        [min(score(seven, samples).values)], rel=1e-6
    )


@pytest.mark.parametrize(("count", "protect"), [(1, None), (3, None), (3, "first=1,last=1"), (6, None)])
def test_the_window_is_the_cheapest_of_all(seven, samples, count: int, protect):
    result = search(seven, samples, "window", count=count, protect=protect)
    inner = range(1, 6) if protect else range(7)
    windows = [tuple(range(n, n + count)) for n in inner if n + count - 1 in inner]
    expected = {w: perplexity(apply(seven, Pruning(blocks=w)), samples) for w in windows}
    best = min(expected, key=expected.get)
    assert [index for _, index in result.order] == list(best)
    assert [tuple(index for _, index in choice.units) for choice in result.steps[0].choices] == windows
    assert [choice.score for choice in result.steps[0].choices] == pytest.approx(list(expected.values()), rel=1e-6)
    assert result.pruning() == Pruning(model=seven.name, blocks=best, made_by="window ppl block")


def test_windows_by_angular_distance_are_reported_in_perplexity(seven, samples):
    result = search(seven, samples, "window", count=3, criterion="angular", tokens="last")
    distances = window_distances(seven, samples, 3, tokens="last")
    assert {c.units[0][1]: c.score for c in result.steps[0].choices} == distances
    best = min(distances, key=distances.get)
    assert result.order == [("block", n) for n in range(best, best + 3)]
    assert result.scores == pytest.approx([perplexity(without(seven, result.order), samples)], rel=1e-6)


def test_one_shot_goes_by_any_criterion(seven, samples):
    result = search(seven, samples, "one-shot", count=3, criterion="magnitude", power=2, unit="ffn", memory=1 << 30)
    ranking = score(seven, criterion="magnitude", power=2, unit="ffn").order()
    assert result.order == ranking[:3]
    assert result.scores == pytest.approx(
        [perplexity(without(seven, ranking[:n]), samples) for n in (1, 2, 3)], rel=1e-6
    )
    assert result.pruning().made_by == "one-shot magnitude ffn"


def test_windows_of_a_pruned_model_are_neighbours_in_it(seven, samples):
    pruned = apply(seven, Pruning(blocks=[3]))
    result = search(pruned, samples, "window", count=2)
    assert (("block", 2), ("block", 4)) in [choice.units for choice in result.steps[0].choices]


def test_a_ratio_stops_where_the_parameters_come_nearest(seven, samples):
    total = seven.parameters()
    mha, ffn = (next(iter(units_of(seven, kind).values())) for kind in ("mha", "ffn"))
    assert len(search(seven, samples, "greedy", ratio=2.4 * (mha + ffn) / total).order) == 2
    assert len(search(seven, samples, "one-shot", ratio=2.6 * (mha + ffn) / total).order) == 3
    assert len(search(seven, samples, "window", ratio=2.6 * (mha + ffn) / total).order) == 3
    for share in (0.7, 2.3, 3.1, 5.6):
        result = search(seven, samples, "greedy", ratio=share * ffn / total, unit="mha+ffn")
        totals = [0]
        for step in result.steps:
            totals.append(totals[-1] + step.parameters)
        distance = [abs(sofar - share * ffn) for sofar in totals]
        assert min(distance[1:]) == distance[-1]  # no fewer steps come nearer
        longer = search(seven, samples, "greedy", count=len(result.order) + 1, unit="mha+ffn")
        assert longer.order[:-1] == result.order
        assert distance[-1] <= abs(totals[-1] + longer.steps[-1].parameters - share * ffn)  # nor does one more


def test_a_result_survives_its_file(seven, samples, tmp_path):
    result = search(seven, samples, "greedy", count=3, unit="mha+ffn")
    result.to_json(tmp_path / "found.json")
    assert SearchResult.from_json(tmp_path / "found.json") == result
    data = json.loads((tmp_path / "found.json").read_text())
    assert data["order"] == [list(unit) for unit in result.order]
    assert result.pruning(2) == Pruning(
        model=seven.name,
        **{key: [index for kind, index in result.order[:2] if kind == key] for key in ("mha", "ffn")},
        made_by="greedy ppl mha+ffn",
    )
    assert result.calibration == score(seven, samples).calibration
    data["order"].reverse()
    (tmp_path / "changed.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"changed.json: search: the key 'order'"):
        SearchResult.from_json(tmp_path / "changed.json")
    (tmp_path / "scores.json").write_text(json.dumps(score(seven, samples).to_dict()))
    with pytest.raises(InputError, match=r"scores.json: search: an object with method and steps"):
        SearchResult.from_json(tmp_path / "scores.json")
    data["order"].reverse()
    assert data.pop("format") == "pyprune-search/1"
    assert SearchResult.from_dict(data) == result  # as files were before they named a format
    with pytest.raises(InputError, match="search: format 'pyprune-search/2': pyprune-search/1 is expected"):
        SearchResult.from_dict({**data, "format": "pyprune-search/2"})
    del data["cost"]
    (tmp_path / "less.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"less.json: search: .*cost"):
        SearchResult.from_json(tmp_path / "less.json")


def test_progress_reaches_its_end_step_by_step(seven, samples):
    for method in ("one-shot", "greedy", "window"):
        reports = []
        search(
            seven, samples, method, count=2, progress=lambda done, total, reports=reports: reports.append((done, total))
        )
        assert [done for done, _ in reports] == sorted({done for done, _ in reports})
        assert reports[-1][0] == reports[-1][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(method="magic"), "method: 'magic' given; one-shot, greedy, window"),
        (dict(method="window", unit="mha"), "unit: 'mha' given; a window is of blocks"),
        (dict(unit="head"), "unit: 'head'"),
        (dict(criterion="taylor"), "criterion: 'taylor' given; method greedy accepts ppl"),
        (dict(count=None), "exactly one of them"),
        (dict(ratio=0.2), "exactly one of them"),
        (dict(count=0), "count 0"),
        (dict(count=8), "count 8: 1 to 7 units"),
        (dict(count=7), "all 7 units would be removed; at least one must stay"),
        (dict(count=14, unit="mha+ffn"), "all 14 units would be removed"),
        (dict(count=3, protect="first=5"), "count 3: 1 to 2 units"),
        (dict(protect="first=7"), "protect 'first=7' leaves nothing"),
        (dict(protect="9"), "protect 9"),
        (dict(count=None, ratio=0.001), "ratio 0.001"),
        (dict(count=None, ratio=0.99), "ratio 0.99"),
        (
            dict(method="window", criterion="block-influence", variant="optipfair", batch=8),
            "batch: 8 given; of options, a window takes tokens, variant, memory",
        ),
        (dict(method="window", protect="2,5"), "no 3 blocks in a row"),
    ],
)
def test_what_cannot_be_had_is_refused_before_any_work(seven, samples, change: dict, message: str):
    given = {"method": "greedy", "count": 3, **change}
    with pytest.raises(InputError, match=message):
        search(seven, samples, **given, progress=lambda *_: pytest.fail("work was done"))


def test_every_unit_of_a_removal_is_a_set_of_sublayers(seven):
    assert removal_of(seven, [("mha", 1), ("block", 6)]) == frozenset({2, 12, 13})
