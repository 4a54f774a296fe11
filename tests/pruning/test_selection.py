"""Selection by hand-made scores: what fits a budget, in multiples, over blocks of different sizes."""

import itertools

import pytest
import torch

from pyprune.errors import InputError
from pyprune.pruning import Pruning, apply, width
from pyprune.pruning.budget import BlockCosts, UniformSizes, group_share, quotas, width_for
from pyprune.pruning.importance import Importance
from pyprune.pruning.selection import best_within_budget, bundles, highest, units_of_bundles, without_lowest

COSTS = [BlockCosts(0, 2, 4, 5, 30, 10), BlockCosts(3, 2, 5, 5, 30, 10)]
SCORES = Importance(
    {0: torch.tensor([5.0, 1.0]), 3: torch.tensor([2.0, 9.0])},
    {0: torch.tensor([4.0, 8.0, 0.5, 6.0]), 3: torch.tensor([3.0, 0.25, 7.0, 1.5, 0.75])},
)


def chosen(budget, align=1, slack=0.0, strictly_above=False, kinds=("groups", "neurons")):
    units = [bundle for kind in kinds for bundle in bundles(SCORES, COSTS, kind, align)]
    kept = units_of_bundles(SCORES, best_within_budget(units, budget, slack, strictly_above=strictly_above))
    return kept.groups, kept.neurons


def test_the_best_of_all_blocks_stay_until_the_budget_is_nearest():
    # In any case: group 0 of block 0, group 1 of block 3, neurons 1 and 2: 80. Then 6, 4, 3 (neurons), 2 (a group) ...
    assert chosen(80) == ({0: [0], 3: [1]}, {0: [1], 3: [2]})
    assert chosen(100) == ({0: [0], 3: [1]}, {0: [0, 1, 3], 3: [2]})
    assert chosen(112) == ({0: [0], 3: [1]}, {0: [0, 1, 3], 3: [0, 2]})
    assert chosen(140) == ({0: [0], 3: [0, 1]}, {0: [0, 1, 3], 3: [0, 2]})


def test_what_no_longer_fits_is_passed_over_where_the_budget_would_be_missed():
    # 120: the nearest prefix is 110, the next unit is a group of 30. Passed over: the neurons of 1.5.
    assert chosen(120, slack=15)[1] == {0: [0, 1, 3], 3: [0, 2]}
    assert chosen(120, slack=5) == ({0: [0], 3: [1]}, {0: [0, 1, 3], 3: [0, 2, 3]})


def test_strictly_above_leaves_out_what_the_cut_fell_on():
    assert chosen(112, slack=15, strictly_above=True)[1] == {0: [0, 1, 3], 3: [2]}


def test_no_sublayer_is_emptied_whatever_the_budget():
    assert chosen(0) == ({0: [0], 3: [1]}, {0: [1], 3: [2]})


def test_multiples_keep_the_best_neurons_up_to_there():
    # Bundles of two: block 0 (8, 6) and (4, 0.5), block 3 (7, 3) and (1.5, 0.75); the fifth neuron of block 3 is left.
    neurons = bundles(SCORES, COSTS, "neurons", 2)
    assert [(bundle.index, bundle.score, bundle.size, bundle.cost) for bundle in neurons] == [
        (0, 7.0, 2, 20), (0, 2.25, 2, 20), (3, 5.0, 2, 20), (3, 1.125, 2, 20),
    ]  # fmt: skip
    assert chosen(60, align=2, kinds=("neurons",))[1] == {0: [0, 1, 2, 3], 3: [0, 2]}
    with pytest.raises(InputError, match="align 5: block 0 has 4 neurons"):
        bundles(SCORES, COSTS, "neurons", 5)


def test_a_number_of_groups_goes_over_all_blocks():
    groups = bundles(SCORES, COSTS, "groups")
    assert units_of_bundles(SCORES, without_lowest(groups, 1)).groups == {0: [0], 3: [0, 1]}
    assert units_of_bundles(SCORES, without_lowest(groups, 2)).groups == {0: [0], 3: [1]}
    with pytest.raises(InputError, match="remove_groups 3: up to 2"):
        without_lowest(groups, 3)


def test_of_equal_scores_the_lower_place_goes_first():
    assert highest(torch.tensor([1.0, 2.0, 1.0, 1.0]), 2) == [1, 3]


SMOLLM = UniformSizes.llama(
    blocks=30, hidden=576, heads=9, kv_groups=3, head_dim=64, width=1536, vocab=49152, tied=True
)  # fmt: skip
BLOCKS = [BlockCosts(0, 3, 1536, 2 * 576, SMOLLM.per_group, SMOLLM.per_neuron)] * 30


@pytest.mark.parametrize("blocks", range(1, 16))
def test_multiples_of_64_meet_every_depth_row_of_smollm2(blocks):
    target = SMOLLM.without(blocks)
    sizes = quotas(BLOCKS, SMOLLM.parameters, target, align=64)
    widths = [width for _, width in sizes]
    assert not any(width % 64 for width in widths)
    assert max(widths) - min(widths) <= 64
    actual = SMOLLM.outside + sum(2 * 576 + n * SMOLLM.per_group + width * SMOLLM.per_neuron for n, width in sizes)
    assert abs(actual - target) <= 0.005 * target


def test_two_multiples_alternate_over_the_depth():
    sizes = quotas(BLOCKS, SMOLLM.parameters, SMOLLM.without(4), align=64)
    widths = [width for _, width in sizes]
    assert len(set(widths)) == 2
    wide = [place for place, width in enumerate(widths) if width == max(widths)]
    steps = {after - before for before, after in itertools.pairwise(wide)}
    assert max(steps) - min(steps) <= 1
    with pytest.raises(InputError, match=r"align 64: the nearest FFN width 1280 gives \d+ parameters"):
        width_for(SMOLLM, SMOLLM.without(4), align=64)


def test_protected_blocks_leave_their_share_to_the_others():
    target = SMOLLM.without(4)
    sizes = quotas(BLOCKS[:20], SMOLLM.parameters, target)
    removed = sum((3 - n) * SMOLLM.per_group + (1536 - width) * SMOLLM.per_neuron for n, width in sizes)
    assert SMOLLM.parameters - removed == pytest.approx(target, rel=0.005)
    assert group_share(BLOCKS[:20], SMOLLM.parameters - target) == [n for n, _ in sizes]


@pytest.mark.parametrize("units", ["heads", "neurons"])
def test_one_kind_alone_meets_the_budget(units):
    target = SMOLLM.without(3)
    sizes = quotas(BLOCKS, SMOLLM.parameters, target, units=units)
    assert {width for _, width in sizes} == {1536} or units == "neurons"
    assert {n for n, _ in sizes} == {3} or units == "heads"
    removed = sum((3 - n) * SMOLLM.per_group + (1536 - width) * SMOLLM.per_neuron for n, width in sizes)
    assert SMOLLM.parameters - removed == pytest.approx(target, rel=0.005)


def test_heads_alone_that_do_not_hold_enough_are_refused_with_what_is_reachable():
    with pytest.raises(InputError, match=r"the nearest 1 KV groups gives \d+ parameters"):
        quotas(BLOCKS, SMOLLM.parameters, SMOLLM.without(8), units="heads")


@pytest.mark.parametrize(
    ("gone", "units", "named"), [("ffn", "both", "has FFN; 'heads'"), ("mha", "heads", "has attention; 'neurons'")]
)
def test_a_kind_that_no_block_has_cannot_be_narrowed(make_decoder, gone, units, named):
    decoder = apply(make_decoder(), Pruning(**{gone: range(4)}))
    with pytest.raises(InputError, match=named):
        width(decoder, "magnitude-sp", ratio=0.3, units=units)


def test_aligned_selections_hold_multiples_and_the_best(make_decoder):
    decoder = make_decoder(blocks=6, hidden=32, width=400, dtype=torch.float32)
    ids = torch.arange(22).view(2, 11)
    target = int(decoder.parameters() * 0.7)
    for method, variant in (("wanda-sp", None), ("flap", None), ("magnitude-sp", None), ("head-gate", "global")):
        free = width(decoder, method, target_parameters=target, calibration=ids, variant=variant)
        pruned = apply(
            decoder,
            aligned := width(decoder, method, target_parameters=target, calibration=ids, align=4, variant=variant),
        )
        assert {block.ffn.width % 4 for block in pruned.blocks} == {0}
        assert pruned.parameters() == pytest.approx(target, rel=0.005)
        # The first block sees the same inputs: the fewer neurons kept are among the more.
        bundle, other = set(free.neurons.get(0, ())), set(aligned.neurons.get(0, ()))
        assert bundle <= other or other <= bundle


def test_importance_of_any_source_can_be_read(make_decoder):
    decoder = make_decoder()
    from pyprune.pruning import magnitude_sp

    found = magnitude_sp.importance(decoder)
    assert {index: len(scores) for index, scores in found.groups.items()} == dict.fromkeys(range(4), 3)
    assert {index: len(scores) for index, scores in found.neurons.items()} == dict.fromkeys(range(4), 13)
    half = magnitude_sp.importance(apply(decoder, Pruning(mha=[1], ffn=[2])))
    assert set(half.groups) == {0, 2, 3}
    assert set(half.neurons) == {0, 1, 3}
