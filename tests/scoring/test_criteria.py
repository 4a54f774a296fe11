"""The one way in: names, units, options, protection, choices that look at nothing, and a model left as it was."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from plain import FAMILIES, SIZES, ids

from pyprune import InputError, Pruning, Scores, apply, depth, load, score, to_transformers
from pyprune.models.streaming import StreamedBlocks
from pyprune.scoring.criteria import CRITERIA
from pyprune.scoring.removals import UNIT_KINDS

BLOCKS = 4


def given(name: str):
    if name == "ppl-after-repair":  # two windows to fit on, and two to score
        return ids(samples=4)
    return None if CRITERIA[name].needs == "nothing" else ids(samples=2)


@pytest.mark.parametrize("unit", UNIT_KINDS)
@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_ranks_every_unit(name: str, unit: str, tmp_path):
    decoder = load(SIZES)
    scores = score(decoder, given(name), name, unit)
    assert scores.criterion == name
    assert scores.unit == unit
    assert scores.units == [(kind, n) for n in range(BLOCKS) for kind in UNIT_KINDS[unit]]
    assert bool(scores.calibration) == (CRITERIA[name].needs != "nothing")
    assert scores.parameters == decoder.parameters()
    scores.to_json(tmp_path / "scores.json")
    assert Scores.from_json(tmp_path / "scores.json") == scores
    assert depth(scores, decoder, count=1).made_by == f"depth {name} {unit}"


@pytest.mark.parametrize("name", CRITERIA)
def test_a_transformers_model_is_left_as_it_was(name: str):
    model = to_transformers(load(FAMILIES["qwen2"])).train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.lm_head.weight.requires_grad_(False)
    model.model.norm.weight.grad = torch.full_like(model.model.norm.weight, 3.0)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    wanted = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    scores = score(model, given(name), name)
    assert scores.values == pytest.approx(score(load(FAMILIES["qwen2"]), given(name), name).values, rel=1e-6)
    assert model.training
    assert {key: parameter.requires_grad for key, parameter in model.named_parameters()} == wanted
    gradients = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert list(gradients) == ["model.norm.weight"]
    assert bool((gradients["model.norm.weight"] == 3).all())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", [name for name, one in CRITERIA.items() if one.needs == "gradients"])
def test_gradients_are_taken_whatever_mode_the_caller_is_in(name: str):
    decoder = load(SIZES)
    expected = score(decoder, given(name), name).values
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert score(decoder, given(name), name).values == expected


@pytest.mark.parametrize("name", CRITERIA)
def test_blocks_that_are_read_when_they_run_are_read_once_a_sweep(name: str):
    decoder, reads = load(SIZES), []

    def read(place: int):
        reads.append(place)
        return decoder.blocks[place]

    shapes = decoder.map(lambda tensor: tensor.to("meta")).blocks
    streamed = dataclasses.replace(decoder, blocks=StreamedBlocks(read, shapes))
    assert score(streamed, given(name), name).values == score(decoder, given(name), name).values
    there = list(range(BLOCKS))
    weights = CRITERIA[name].needs != "nothing" or name in ("magnitude", "weight-norm")
    back = there[::-1] if CRITERIA[name].needs == "gradients" else []
    fit = there if name == "ppl-after-repair" else []
    assert reads == (fit + there + back if weights else [])


@pytest.mark.parametrize("name", CRITERIA)
def test_bfloat16_checkpoints_are_scored_close_to_their_own_weights_in_float32(name: str):
    low = load(SIZES, dtype=torch.bfloat16)
    # Where the processor multiplies bfloat16 itself, activations are rounded; plain differences of them more so.
    # Of a map, rounding may decide the ridge.
    options = {"form": "mean-update"} if name == "ppl-after-repair" else {}
    expected = score(low.to(torch.float32), given(name), name, **options).values
    assert score(low, given(name), name, **options).values == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("first", {}, [0, 1, 2, 3, 4]),
        ("last", {}, [4, 3, 2, 1, 0]),
        ("middle", {}, [2, 1, 3, 0, 4]),
        ("every", {}, [1, 3, 0, 2, 4]),
        ("every", {"every": 3}, [2, 0, 1, 3, 4]),
        ("every", {"every": 1}, [0, 1, 2, 3, 4]),
    ],
)
def test_static_choices_by_hand(tiny, name: str, options: dict, order: list[int]):
    assert [index for _, index in score(tiny, criterion=name, **options).order()] == order


def test_middle_of_an_even_number_of_blocks_takes_the_lower_one_first():
    assert [index for _, index in score(load(SIZES), criterion="middle").order()] == [1, 2, 0, 3]


def test_static_choices_of_sublayers_and_of_a_pruned_model_count_what_is_there(tiny):
    pruned = apply(tiny, Pruning(blocks=[0], mha=[3]))
    assert score(pruned, criterion="last", unit="mha+ffn").order()[:3] == [("ffn", 4), ("mha", 4), ("ffn", 3)]
    assert score(pruned, criterion="first", unit="mha").order() == [("mha", 1), ("mha", 2), ("mha", 4)]


def test_random_choices_are_a_permutation_that_its_seed_repeats(tiny):
    one, two = (score(tiny, criterion="random", seed=seed) for seed in (0, 1))
    assert sorted(one.values) == sorted(two.values) == [0, 1, 2, 3, 4]
    assert one.values != two.values
    assert score(tiny, criterion="random", seed=1).values == two.values
    assert two.options == {"seed": 1}


def test_protected_units_are_scored_but_last_in_the_order_and_never_removed(tiny, tmp_path):
    free, scores = (score(tiny, criterion="first", unit="mha+ffn", protect=p) for p in (None, "first=1,last=2"))
    assert free.protected == []
    assert "protected" not in free.to_dict()
    assert scores.values == free.values
    assert scores.protected == [(kind, n) for n in (0, 3, 4) for kind in ("mha", "ffn")]
    assert scores.order()[:4] == [("mha", 1), ("ffn", 1), ("mha", 2), ("ffn", 2)]
    assert sorted(scores.order()) == sorted(free.order())
    assert scores.to_dict()["protected"][0] == ["mha", 0]
    scores.to_json(tmp_path / "scores.json")
    assert Scores.from_json(tmp_path / "scores.json") == scores
    assert depth(scores, tiny, count=4) == dataclasses.replace(depth(free, tiny, count=4, protect="0,3,4"))
    with pytest.raises(InputError, match="1 to 4 units can be removed"):
        depth(scores, tiny, count=5)
    with pytest.raises(InputError, match="leaves nothing to remove"):
        depth(scores, tiny, count=1, protect="1,2")


def test_a_protected_unit_that_was_not_scored_is_refused():
    with pytest.raises(InputError, match="block 1 is protected, but not scored"):
        Scores("m", "c", "block", None, [("block", 0)], [1.0], protected=[("block", 1)])
    with pytest.raises(InputError, match="options 3: an object is expected"):
        Scores("m", "c", "block", None, [("block", 0)], [1.0], options=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(criterion="magic"), "criterion: 'magic' given; ppl, first-order-ppl, .* random are accepted"),
        (dict(criterion="taylor", unit="head"), r"unit: 'head' given; block, mha, ffn, mha\+ffn are accepted"),
        (dict(criterion="taylor", input_ids=None), "input_ids: None given, but criterion taylor needs token ids"),
        (dict(input_ids=None), "input_ids: None given, but criterion ppl needs"),
        (dict(criterion="angular", input_ids=torch.tensor([[1, 53]])), "token id 53"),
        (dict(criterion="angular", attention_mask=torch.ones(1, 2)), "attention_mask: shape"),
        (dict(criterion="magnitude", power=3), "power: 3 given; criterion magnitude accepts 1, 2"),
        (dict(criterion="magnitude", k=3), "k: 3 given, but criterion magnitude takes the options power, within"),
        (dict(criterion="first", k=3), "criterion first takes the options none"),
        (dict(criterion="every", every=0), "every: 0 given; criterion every accepts whole numbers from 1"),
        (dict(criterion="every", every=True), "every: True given"),
        (dict(criterion="angular", variant="paper"), "variant: 'paper' given; criterion angular accepts corrected"),
        (dict(criterion="angular", variant=["corrected"]), "variant: "),
        (dict(criterion="angular", variant="faithful", unit="mha"), "variant faithful of angular accepts block"),
        (dict(criterion="angular", variant="faithful", tokens="mean"), "variant faithful of angular accepts last"),
        (dict(criterion="taylor", variant="faithful", salience="second"), "accepts first"),
        (dict(criterion="taylor", batch=2), "batch: 2 given, which variant corrected of taylor does not take"),
        (dict(criterion="ppl", power=1), "power: 1 given, but criterion ppl takes the options "),
        (dict(criterion="magnitude", protect="first=x"), "protect 'first=x'"),
        (dict(criterion="magnitude", protect=[9]), "protect 9"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(change: dict, message: str):
    with pytest.raises(InputError, match=message):
        score(**{"model": load(SIZES), "input_ids": ids(), **change}, progress=lambda *_: pytest.fail("work was done"))


def test_a_ranking_that_the_model_has_no_unit_of_is_refused():
    pruned = apply(load(SIZES), Pruning(ffn=[0, 1, 2, 3]))
    for name in ("magnitude", "taylor", "angular", "first"):
        with pytest.raises(InputError, match=r"unit: 'ffn' given, but .* has none"):
            score(pruned, given(name), name, "ffn")


@pytest.mark.parametrize("name", ["taylor", "angular", "first-order-ppl"])
def test_what_is_not_a_number_is_reported_not_ranked(name: str):
    decoder = load(SIZES)
    broken = dataclasses.replace(decoder, embedding=torch.full_like(decoder.embedding, float("nan")))
    with pytest.raises(ArithmeticError, match="not a number"):
        score(broken, given(name), name)


def test_gradients_that_will_not_fit_are_refused_before_they_start(monkeypatch):
    from pyprune.runtime import memory

    monkeypatch.setattr(memory, "available", lambda device: 1 << 10)
    with pytest.raises(
        InputError, match=r"gradients of .* are needed on cpu and .* fewer or shorter samples need less"
    ):
        score(load(SIZES), ids(), "taylor", progress=lambda *_: pytest.fail("work was done"))


@pytest.mark.parametrize("name", [name for name, one in CRITERIA.items() if one.needs != "nothing"])
def test_progress_reaches_its_end(name: str):
    reports = []
    score(load(SIZES), ids(), name, progress=lambda done, total: reports.append((done, total)))
    assert reports[-1][0] == reports[-1][1]
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
