"""Every width method against its formula written out in float64: importance, selection, and what it adds."""

import functools
from dataclasses import replace

import pytest
import torch
from width_definitions import (
    best_within,
    costs,
    flap_units,
    gate_units,
    gone,
    llm_pruner_units,
    lowest,
    published_variance,
    stream,
)

import pyprune
from pyprune.errors import InputError
from pyprune.models.decoder import Linear
from pyprune.pruning import Pruning, apply, flap, head_gate, llm_pruner, magnitude_sp, wanda_sp, width
from pyprune.pruning.budget import BlockCosts, quotas
from tests import seeds
from tests.judge import assert_no_worse_than_torch

SHAPE = "shape:hidden=32,blocks=6,heads=6,kv_heads=3,head_dim=6,ffn=131,vocab=67"
FAMILIES = ["", ",family=mistral,window=5", ",family=qwen2,window=5,full_blocks=2", ",family=qwen3", ",tied=1"]


@pytest.fixture
def ids():
    return torch.randint(0, 67, (5, 11), generator=seeds.generator(3))


@pytest.fixture(params=FAMILIES, ids=lambda family: family or "llama")
def decoder(request, reference):
    return made(SHAPE + request.param, reference.eps)


@functools.cache  # no test changes it
def made(shape, eps):
    return replace(pyprune.load(shape), eps=eps)


def target(decoder, blocks=2):
    return decoder.parameters() - blocks * sum(t.numel() for _, t in decoder.blocks[0].tensors())


def uniform(decoder, aim, added=0, **options):
    costs = [BlockCosts.of(block) for block in decoder.blocks]
    return quotas(costs, decoder.parameters() + added, aim, **options)


def removed_per_block(decoder, units, sizes):
    """The lowest of each block, down to these sizes."""
    groups = {
        b.index: lowest(units, "groups", b.index, b.mha.kv_heads - n)
        for b, (n, _) in zip(decoder.blocks, sizes, strict=True)
    }
    neurons = {
        b.index: lowest(units, "neurons", b.index, b.ffn.width - n)
        for b, (_, n) in zip(decoder.blocks, sizes, strict=True)
    }
    return Pruning(kv_groups=groups, neurons=neurons)


def assert_same(pruning, expected):
    assert pruning.kv_groups == expected.kv_groups
    assert pruning.neurons == expected.neurons
    assert pruning.neurons


def assert_scores_no_worse(importance, plain, exact):
    """The scores of each block and kind, judged together."""
    for block, kind in {unit[:2] for unit in exact}:
        places = sorted(unit[2] for unit in exact if unit[:2] == (block, kind))
        scores = [
            torch.tensor([units[block, kind, place] for place in places], dtype=torch.float64)
            for units in (plain, exact)
        ]
        assert_no_worse_than_torch(getattr(importance, kind)[block].double(), *scores)


def added(pruning):
    """Parameters of the biases that a pruning adds to projections that have none."""
    return sum(len(bias) for bias in pruning.compensation.values())


def biases_of(decoder):
    return sum(t.shape[0] for b in decoder.blocks for t in (b.mha.o.weight, b.ffn.down.weight))


@pytest.mark.parametrize("metric", ["WIFV", "IFV", "WIFN"])
@pytest.mark.parametrize("code", ["corrected", "faithful"])
def test_flap_ranks_all_units_together(decoder, ids, reference, metric, code):
    aim = target(decoder)
    units = flap_units(decoder, ids, reference, metric, adaptive=True, faithful=code == "faithful")
    cost = costs(decoder)
    pruning = width(decoder, "flap", target_parameters=aim, calibration=ids, variant=f"{metric},{code}")
    untouched = decoder.parameters() + added(pruning) - sum(cost[unit[:2]] for unit in units)
    expected = gone(units, best_within(units, cost, aim - untouched, 0.005 * aim, above=code == "faithful"))
    assert (pruning.kv_groups, pruning.neurons) == (expected["groups"], expected["neurons"])
    assert apply(decoder, pruning).parameters() == pytest.approx(aim, rel=0.005)


@pytest.mark.parametrize("code", ["corrected", "faithful"])
@pytest.mark.parametrize("metric", ["WIFV", "WIFN"])
def test_flap_uniform_keeps_the_best_of_each_block(decoder, ids, reference, metric, code):
    aim = target(decoder)
    units = flap_units(decoder, ids, reference, metric, adaptive=False, faithful=code == "faithful")
    sizes = uniform(decoder, aim, biases_of(decoder))
    pruning = width(decoder, "flap", target_parameters=aim, calibration=ids, variant=["UL-UM", metric, code])
    assert_same(pruning, removed_per_block(decoder, units, sizes))
    by_hand = width(
        decoder, "flap", target_parameters=aim, calibration=ids, variant=["UL-MM", metric, code], remove_groups=6
    )
    assert {len(groups) for groups in by_hand.kv_groups.values()} == {1}
    sizes = uniform(decoder, aim, biases_of(decoder), removed_groups=1)
    assert_same(by_hand, removed_per_block(decoder, units, sizes))


@pytest.mark.parametrize("remove", [None, 4])
def test_flap_al_mm_ranks_groups_and_neurons_apart(decoder, ids, reference, remove):
    aim = target(decoder)
    units = flap_units(decoder, ids, reference, "WIFV", adaptive=True, faithful=False)
    cost = costs(decoder)
    if remove is None:
        remove = sum(
            b.mha.kv_heads - n
            for b, (n, _) in zip(decoder.blocks, uniform(decoder, aim, biases_of(decoder)), strict=True)
        )
        assert remove
        options = {}
    else:
        options = {"remove_groups": remove}
    groups = {unit: score for unit, score in units.items() if unit[1] == "groups"}
    best = {block.index: max((u for u in groups if u[0] == block.index), key=groups.get) for block in decoder.blocks}
    spare = sorted((unit for unit in groups if unit not in best.values()), key=groups.get)
    stay = set(groups) - set(spare[:remove])
    neurons = {unit: score for unit, score in units.items() if unit[1] == "neurons"}
    pruning = width(decoder, "flap", target_parameters=aim, calibration=ids, variant="AL-MM", **options)
    untouched = decoder.parameters() + added(pruning) - sum(cost[unit[:2]] for unit in units)
    stay |= best_within(neurons, cost, aim - untouched - sum(cost[unit[:2]] for unit in stay), 0.005 * aim)
    expected = gone(units, stay)
    assert (pruning.kv_groups, pruning.neurons) == (expected["groups"], expected["neurons"])
    assert sum(map(len, pruning.kv_groups.values())) == remove


def with_a_faint_group(decoder):
    """The decoder with a KV group in block 1 that adds next to nothing, so that FLAP takes it whatever was drawn."""
    block = decoder.blocks[1]
    weight = block.mha.o.weight.clone()
    weight[:, : block.mha.group * block.mha.head_dim] *= 1e-3
    mha = replace(block.mha, o=replace(block.mha.o, weight=weight))
    return replace(decoder, blocks=(decoder.blocks[0], replace(block, mha=mha), *decoder.blocks[2:]))


def test_flap_adds_the_mean_of_what_it_takes_away(decoder, ids, reference):
    decoder = with_a_faint_group(decoder)
    pruning = width(decoder, "flap", target_parameters=target(decoder), calibration=ids)
    names = set()
    for block, context, activation in stream(decoder, ids, reference):
        per_group = block.mha.heads // block.mha.kv_heads * block.mha.head_dim
        channels = [
            c
            for group in pruning.kv_groups.get(block.index, ())
            for c in range(group * per_group, (group + 1) * per_group)
        ]
        for name, linear, x, removed in (
            ("o", block.mha.o, context, channels),
            ("down", block.ffn.down, activation, list(pruning.neurons.get(block.index, ()))),
        ):
            if removed:
                names.add(f"blocks.{block.index}.{name}.bias")
                mean = x.flatten(0, 1).mean(0)
                expected = sum(linear.weight[:, j].double() * mean[j] for j in removed)
                added = pruning.compensation[f"blocks.{block.index}.{name}.bias"]
                torch.testing.assert_close(added.double(), expected, rtol=1e-5, atol=1e-6)
    assert set(pruning.compensation) == names
    assert "blocks.1.o.bias" in names
    assert (
        width(decoder, "flap", target_parameters=target(decoder), calibration=ids, variant="no-bias").compensation
        == Pruning().compensation
    )


def test_flap_keeps_the_mean_output_of_each_projection(make_decoder, reference):
    # One block: with its bias, the narrowed FFN's output has the mean of the whole one's over the calibration.
    decoder = make_decoder(blocks=2, width=97, dtype=torch.float32)
    ids = torch.arange(24).view(2, 12)
    pruning = width(
        decoder, "flap", target_parameters=int(decoder.parameters() * 0.8), calibration=ids, units="neurons"
    )
    narrow = apply(decoder, pruning).blocks[0].ffn
    whole = decoder.blocks[0]
    x = decoder.embedding.double()[ids]
    x = x + reference.project(whole.mha.o, reference.context(whole.mha, x, decoder.rope))
    outputs = [reference.project(ffn.down, reference.activation(ffn, x)) for ffn in (whole.ffn, narrow)]
    torch.testing.assert_close(outputs[1].mean((0, 1)), outputs[0].mean((0, 1)), rtol=0, atol=1e-6)
    assert not torch.allclose(outputs[1], outputs[0], atol=1e-3)


def test_fluctuation_by_hand_and_as_published():
    inputs = flap.ChannelStatistics()
    for sample in ([[0.0], [2.0]], [[4.0], [6.0]], [[3.0], [3.0]]):
        inputs.add(torch.tensor(sample))
    # All tokens 0 2 4 6 3 3: mean 3, squared deviations 9 1 1 9 0 0, over 6 - 1.
    assert inputs.variance().tolist() == [4.0]
    # As published, the means after each sample are 1, 3, 3. Sample 1: 0. Sample 2: ((4-3)^2 + (6-3)^2) / 2 = 5.
    # Sample 3: 5 * 1/2 + (0 + 0) / 3. The first sample and the old means are lost.
    assert inputs.variance(faithful=True).tolist() == [2.5]
    assert published_variance(torch.tensor([[[0.0], [2.0]], [[4.0], [6.0]], [[3.0], [3.0]]]).double()).tolist() == [2.5]
    linear = Linear(torch.tensor([[2.0], [-1.0]]))
    assert flap.channel_scores("WIFV", linear, inputs).tolist() == [4.0 * 5]
    assert flap.channel_scores("IFV", linear, inputs).tolist() == [4.0]
    # mean(|2|, |-1|) times the root of (0 + 4 + 16 + 36 + 9 + 9) / 6.
    assert flap.channel_scores("WIFN", linear, inputs).tolist() == [pytest.approx(1.5 * (74 / 6) ** 0.5)]


def test_squaring_the_attention_metric_turns_the_order_of_two_heads(make_decoder):
    decoder = make_decoder(blocks=1, heads=2, kv_heads=2, head_dim=2)
    block = decoder.blocks[0]
    o = Linear(torch.tensor([1.0, 3.0, 2.0, 2.4]).repeat(16, 1))
    block = replace(block, mha=replace(block.mha, o=o))
    inputs = flap.ChannelStatistics(), flap.ChannelStatistics()
    inputs[0].add(torch.tensor([[1.0, -1.0, 1.0, -1.0], [-1.0, -1.0, 1.0, 1.0]]))
    inputs[1].add(torch.ones(2, 13))
    decoder = replace(decoder, blocks=(block,))
    # The norms are 1, so a channel scores its weight: 1 + 3 < 2 + 2.4, but 1 + 9 > 4 + 5.76.
    for faithful, expected in ((False, [4.0, 4.4]), (True, [10.0, 9.76])):
        found = flap.importance(decoder, {0: inputs}, "WIFN", adaptive=False, faithful=faithful)
        assert found.groups[0].tolist() == pytest.approx(expected)
        assert found.neurons[0].tolist() == pytest.approx(block.ffn.down.weight.abs().mean(0).tolist())


def test_what_was_published_chooses_other_neurons(ids):
    decoder = pyprune.load(SHAPE)
    for structure in ("UL-UM", "AL-AM"):
        corrected, faithful = (
            width(decoder, "flap", target_parameters=target(decoder), calibration=ids, variant=[structure, code])
            for code in ("corrected", "faithful")
        )
        assert corrected.neurons != faithful.neurons


def test_one_sample_has_a_fluctuation_only_when_corrected():
    inputs = flap.ChannelStatistics()
    inputs.add(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert inputs.variance().tolist() == [2.0, 0.0]
    assert inputs.variance(faithful=True).tolist() == [0.0, 0.0]


# Gradients are a family's, what is made of them is the variant's: each of either.
TAYLOR = [
    *((FAMILIES[0], variant) for variant in llm_pruner.VARIANTS),
    *zip(FAMILIES[1:], reversed(llm_pruner.VARIANTS), strict=True),
]


@pytest.mark.parametrize(("family", "variant"), TAYLOR)
def test_llm_pruner_is_the_taylor_estimate(family, ids, reference, variant):
    decoder = made(SHAPE + family, reference.eps)
    aim = target(decoder)
    units, plain = (
        llm_pruner_units(decoder, ids, reference, variant, dtype=dtype) for dtype in (torch.float64, torch.float32)
    )
    assert_scores_no_worse(llm_pruner.importance(decoder, ids, variant), plain, units)
    # The first eighth and the last sixteenth of six blocks: the first.
    mine = decoder.blocks[1:]
    free = {unit: score for unit, score in units.items() if unit[0] > 0}
    chosen = {
        scope: width(decoder, "llm-pruner", target_parameters=aim, calibration=ids, variant=f"{variant},{scope}")
        for scope in ("local", "global")
    }
    sizes = quotas([BlockCosts.of(block) for block in mine], decoder.parameters(), aim)
    assert_same(chosen["local"], removed_per_block(replace(decoder, blocks=mine), free, sizes))
    cost = costs(decoder)
    untouched = decoder.parameters() - sum(cost[unit[:2]] for unit in free)
    expected = gone(free, best_within(free, cost, aim - untouched, 0.005 * aim))
    assert (chosen["global"].kv_groups, chosen["global"].neurons) == (expected["groups"], expected["neurons"])
    assert all(0 not in pruning.neurons for pruning in chosen.values())


def test_llm_pruner_folds_query_channels_onto_other_heads_as_published(ids, reference):
    decoder = made(SHAPE, reference.eps)
    units, plain = (
        llm_pruner_units(decoder, ids, reference, "param_first", faithful=True, dtype=dtype)
        for dtype in (torch.float64, torch.float32)
    )
    faithful = llm_pruner.importance(decoder, ids, faithful=True)
    corrected = llm_pruner.importance(decoder, ids)
    assert_scores_no_worse(faithful, plain, units)
    for block in decoder.blocks:
        index = block.index
        assert not torch.allclose(faithful.groups[index], corrected.groups[index], rtol=1e-3)
        assert float(faithful.groups[index].sum()) == pytest.approx(float(corrected.groups[index].sum()))
    # With as many KV as query heads there is nothing to fold.
    full = pyprune.load(SHAPE.replace("kv_heads=3", "kv_heads=6"))
    one, other = (llm_pruner.importance(full, ids, faithful=how).groups[3] for how in (True, False))
    assert torch.equal(one, other)


def test_taylor_row_scores_by_hand():
    weight, g, h = torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([[2.0, 2.0], [-1.0, 4.0]]), torch.ones(2, 2)
    # Two samples: the sums hold twice the mean. S = [[2, -4], [-3, 2]], W^2 H = [[1, 4], [9, 0.25]].
    expected = {
        "vectorize": ([2.0, 1.0], [1.0, 2.0]),
        "param_first": ([6.0, 5.0], [5.0, 6.0]),
        "param_second": ([5.0, 9.25], [10.0, 4.25]),
        "param_mix": ([1.5 + 6.0, 7.5 + 1.875], [1.5 + 7.5, 6.0 + 1.875]),
    }
    for variant, both in expected.items():
        for dim, scores in zip((1, 0), both, strict=True):
            found = llm_pruner.salience(weight, 2 * g, 2 * h, 2, variant)
            assert llm_pruner.row_scores(found, dim, variant).tolist() == scores


@pytest.mark.parametrize(("blocks", "named"), [(32, "first=4,last=2"), (40, "first=5,last=3"), (3, "first=0,last=0")])
def test_an_eighth_and_a_sixteenth_are_protected(blocks, named):
    assert llm_pruner.protected(blocks) == named


def test_head_gate_is_the_slope_in_a_gate(decoder, ids, reference):
    aim = target(decoder)
    units, plain = (gate_units(decoder, ids, reference, dtype) for dtype in (torch.float64, torch.float32))
    assert_scores_no_worse(head_gate.importance(decoder, ids), plain, units)
    given = {"target_parameters": aim, "calibration": ids}
    local, pruning = (width(decoder, "head-gate", **given, variant=scope) for scope in ("local", "global"))
    sizes = uniform(decoder, aim)
    assert_same(local, removed_per_block(decoder, units, sizes))
    squares = {}
    for unit, score in units.items():
        squares[unit[:2]] = squares.get(unit[:2], 0.0) + score**2
    normed = {unit: score / squares[unit[:2]] ** 0.5 for unit, score in units.items()}
    removed = sum(b.mha.kv_heads - n for b, (n, _) in zip(decoder.blocks, sizes, strict=True))
    groups = {unit: score for unit, score in normed.items() if unit[1] == "groups"}
    best = {block.index: max((u for u in groups if u[0] == block.index), key=groups.get) for block in decoder.blocks}
    spare = sorted((unit for unit in groups if unit not in best.values()), key=groups.get)
    stay = set(groups) - set(spare[:removed])
    neurons = {unit: score for unit, score in normed.items() if unit[1] == "neurons"}
    cost = costs(decoder)
    untouched = decoder.parameters() - sum(cost[unit[:2]] for unit in units)
    stay |= best_within(neurons, cost, aim - untouched - sum(cost[unit[:2]] for unit in stay), 0.005 * aim)
    expected = gone(units, stay)
    assert (pruning.kv_groups, pruning.neurons) == (expected["groups"], expected["neurons"])


def test_magnitude_sp_is_the_norm_of_columns(decoder):
    units = {}
    for block in decoder.blocks:
        per_group = block.mha.heads // block.mha.kv_heads * block.mha.head_dim
        for group in range(block.mha.kv_heads):
            columns = range(group * per_group, (group + 1) * per_group)
            units[block.index, "groups", group] = sum(
                float((block.mha.o.weight[:, j].double() ** 2).sum()) ** 0.5 for j in columns
            )
        for j in range(block.ffn.width):
            units[block.index, "neurons", j] = float((block.ffn.down.weight[:, j].double() ** 2).sum()) ** 0.5
    aim = target(decoder)
    pruning = width(decoder, "magnitude-sp", target_parameters=aim)
    assert_same(pruning, removed_per_block(decoder, units, uniform(decoder, aim)))
    found = magnitude_sp.importance(decoder)
    assert all(
        float(getattr(found, kind)[block][place]) == pytest.approx(s) for (block, kind, place), s in units.items()
    )


def test_wanda_sp_as_published_hears_samples_of_zeros(make_decoder, reference):
    decoder = make_decoder(width=201, biases=True, dtype=torch.float32, seed=2)
    ids = torch.arange(22).view(2, 11)
    chosen = {}
    for code, zeros in (("corrected", 0), ("faithful", 2046)):
        # The published loop, but for a buffer of this many rows of zeros behind the samples.
        states = [decoder.embedding.double()[ids]]
        if zeros:
            states.append(torch.zeros(1, 11, 16, dtype=torch.float64))  # one stands for all
        neurons, groups = {}, {}
        sizes = uniform(decoder, target(decoder))
        for block, (kept_groups, kept_neurons) in zip(decoder.blocks, sizes, strict=True):
            squares = {"o": 0.0, "down": 0.0}
            for x, weight in zip(states, (1, zeros), strict=False):
                context = reference.context(block.mha, x, decoder.rope)
                after = x + reference.project(block.mha.o, context)
                activation = reference.activation(block.ffn, after)
                squares["o"] = squares["o"] + weight * (context**2).sum((0, 1))
                squares["down"] = squares["down"] + weight * (activation**2).sum((0, 1))
            heads = (block.mha.o.weight.double().abs().mean(0) * squares["o"].sqrt()).view(3, -1).sum(1)
            channels = block.ffn.down.weight.double().abs().mean(0) * squares["down"].sqrt()
            groups[block.index] = sorted(heads.argsort()[: 3 - kept_groups].tolist())
            neurons[block.index] = sorted(channels.argsort()[: 201 - kept_neurons].tolist())
            narrow = apply(
                decoder,
                Pruning(kv_groups={block.index: groups[block.index]}, neurons={block.index: neurons[block.index]}),
            )
            states = [reference.run_block(narrow.blocks[block.index], x, decoder.rope) for x in states]
        pruning = width(decoder, "wanda-sp", target_parameters=target(decoder), calibration=ids, variant=code)
        assert_same(pruning, Pruning(kv_groups=groups, neurons=neurons))
        chosen[code] = pruning
    assert chosen["corrected"].neurons != chosen["faithful"].neurons


def test_without_biases_the_published_wanda_sp_chooses_the_same(ids):
    decoder = pyprune.load(SHAPE)
    one, other = (
        width(decoder, "wanda-sp", target_parameters=target(decoder), calibration=ids, variant=code)
        for code in ("corrected", "faithful")
    )
    assert one.neurons == other.neurons
    assert one.kv_groups == other.kv_groups
    assert wanda_sp.BUFFER == 2048


@pytest.mark.parametrize("method", ["wanda-sp", "flap", "llm-pruner", "magnitude-sp", "head-gate"])
def test_pruned_models_of_every_family_generate(decoder, ids, reference, method):
    pruned = apply(decoder, width(decoder, method, target_parameters=target(decoder), calibration=ids))
    x = reference.logits(pruned, ids)
    engine = pyprune.Engine(pruned, max_batch=5, max_len=16)
    new = engine.generate(ids, max_new_tokens=2)
    logits = x[:, -1]
    top = logits.topk(2).values
    sure = top[:, 0] - top[:, 1] > 1e-3
    assert bool(sure.any())
    assert torch.equal(new[sure, 0], logits.argmax(-1)[sure])


@pytest.mark.parametrize("method", ["flap", "llm-pruner", "head-gate"])
def test_a_saved_ragged_model_loads_again_with_a_record_that_makes_it_anew(decoder, ids, method, tmp_path):
    heads = Pruning(heads={1: [0, 2, 4]})  # one of each group of two
    pruned = apply(
        decoder, heads | width(decoder, method, target_parameters=target(decoder), calibration=ids, units="neurons")
    )
    pruned.save(tmp_path / "saved")
    again = pyprune.load(tmp_path / "saved")
    record = Pruning.from_json(tmp_path / "saved" / "pruning.json")
    assert again.pruning == pruned.pruning == record
    assert again.blocks[1].mha.group == 1
    for remade in (again, apply(decoder, record), apply(again, record)):
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(remade.tensors(), pruned.tensors(), strict=True))


@pytest.mark.parametrize("method", ["llm-pruner", "head-gate"])
def test_a_narrowed_model_is_narrowed_again_in_original_indices(ids, method):
    decoder = pyprune.load(SHAPE)
    first = width(decoder, "flap", target_parameters=target(decoder), calibration=ids)
    once = apply(decoder, first)
    second = width(once, method, target_parameters=target(decoder, 3), calibration=ids, protect="")
    for layer, neurons in second.neurons.items():
        assert not set(neurons) & set(first.neurons.get(layer, ()))
    twice, both = apply(once, second), apply(decoder, first | second)
    assert twice.pruning == both.pruning
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(twice.tensors(), both.tensors(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"variant": "WIFX"}, "variant 'WIFX'"),
        ({"variant": "WIFV,IFV"}, "WIFV, IFV: one of them"),
        ({"variant": "AL-AM", "remove_groups": 3}, "remove_groups 3"),
        ({"variant": "AL-MM", "remove_groups": -1}, "remove_groups -1"),
        ({"variant": "AL-MM", "remove_groups": 99}, "remove_groups 99: up to 12"),
        ({"units": "blocks"}, "units 'blocks'"),
        ({"protect": "first=6"}, "leaves no block"),
        ({"protect": "12"}, "protect 12"),
        ({"align": 150}, "align 150: block 0 has 131 neurons"),
        ({"align": 130}, "align 130: .* within 0.5%"),
        ({"calibration": None}, "calibration none"),
        (
            {"method": "wanda-sp", "variant": "global"},
            "variant 'global': of wanda-sp are accepted corrected or faithful",
        ),
    ],
)
def test_bad_options_are_refused_by_their_value(ids, arguments, named):
    decoder = pyprune.load(SHAPE)
    given = {"method": "flap", "target_parameters": target(decoder), "calibration": ids, **arguments}
    with pytest.raises(InputError, match=named):
        width(decoder, **given)


def test_one_token_a_sample_predicts_nothing(ids):
    with pytest.raises(InputError, match="1 token a sample"):
        width(pyprune.load(SHAPE), "llm-pruner", ratio=0.2, calibration=ids[:, :1])


def test_progress_counts_to_its_end(ids):
    for method in ("flap", "llm-pruner", "head-gate", "wanda-sp"):
        seen = []
        width(
            pyprune.load(SHAPE),
            method,
            ratio=0.15,
            calibration=ids,
            progress=lambda done, of, seen=seen: seen.append((done, of)),
        )
        assert seen[-1][0] == seen[-1][1] > 1 or method in ("llm-pruner", "head-gate")
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})
