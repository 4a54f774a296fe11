"""Distances along the residual stream: by hand, and against the hidden states of transformers' model in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from plain import FAMILIES, SIZES, constant_updates, ids, kinds_of, model_of, padding

from pyprune import InputError, Pruning, apply, load, score
from pyprune.runtime.sequence import activation_dtype
from pyprune.scoring.footprint import pass_bytes
from pyprune.scoring.layered_decoder import LayeredDecoder
from pyprune.scoring.similarity import mean_of_means, token_weights, window_distances

NEAR = 2e-5
"""Of float32 activations, of which the distances are small differences."""


def states(decoder, input_ids, mask=None):
    """(kind, original index) -> the states before and behind it, float64 `[S, T, hidden]`, from transformers' model."""
    model, result = model_of(decoder), {}
    for layer, block in zip(model.model.layers, decoder.blocks, strict=True):
        seen = {}
        layer.register_forward_pre_hook(lambda _, given, seen=seen: seen.update(before=given[0]))
        layer.post_attention_layernorm.register_forward_pre_hook(lambda _, given, seen=seen: seen.update(mid=given[0]))
        layer.register_forward_hook(lambda _, given, output, seen=seen: seen.update(behind=output))
        result[block.index] = seen
    with torch.no_grad():
        model(input_ids, attention_mask=mask)
    ends = {"block": ("before", "behind"), "mha": ("before", "mid"), "ffn": ("mid", "behind")}
    return {
        (kind, block.index): tuple(result[block.index][end] for end in ends[kind])
        for block in decoder.blocks
        for kind in ends
        if kind == "block" or getattr(block, kind) is not None
    }


def cosine(x, y):
    return torch.nn.functional.cosine_similarity(x, y, dim=-1)


DISTANCES = {
    ("block-influence", None): lambda x, y: 1 - cosine(x, y),
    ("angular", None): lambda x, y: cosine(x, y).arccos() / math.pi,
    ("relative-magnitude", "output"): lambda x, y: (y - x).norm(dim=-1) / y.norm(dim=-1),
    ("relative-magnitude", "input"): lambda x, y: (y - x).norm(dim=-1) / x.norm(dim=-1),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("criterion", "over"), DISTANCES)
def test_every_distance_is_that_of_transformers_states(family: str, criterion: str, over: str | None):
    decoder, input_ids = load(FAMILIES[family]), ids()
    mask = padding(input_ids)
    plain = states(decoder, input_ids, mask)
    options = {} if over is None else {"over": over}
    for unit in ("block", "mha+ffn"):
        ends = {candidate: plain[candidate] for candidate in plain if candidate[0] in kinds_of(unit)}
        distances = {candidate: DISTANCES[criterion, over](x, y) for candidate, (x, y) in ends.items()}
        result = score(decoder, input_ids, criterion, unit, mask, **options)
        assert result.units == [(kind, n) for n in range(4) for kind in kinds_of(unit)]
        assert dict(zip(result.units, result.values, strict=True)) == pytest.approx(
            {candidate: float(d[mask == 1].mean()) for candidate, d in distances.items()}, rel=NEAR
        )
        last = score(decoder, input_ids, criterion, unit, mask, tokens="last", **options)
        ends_at = torch.tensor([8, 5, 4, 8])
        assert dict(zip(last.units, last.values, strict=True)) == pytest.approx(
            {candidate: float(d[torch.arange(4), ends_at].mean()) for candidate, d in distances.items()}, rel=NEAR
        )


def test_by_hand_on_updates_that_are_known():
    # Tokens (1, 0) and (0, 1), to which the only block adds (0, 1): 45 degrees, and none.
    decoder, input_ids = constant_updates((0, 1)), torch.tensor([[0, 1]])
    half = math.sqrt(0.5)
    assert score(decoder, input_ids, "block-influence").values == pytest.approx([(1 - half) / 2], rel=1e-6)
    assert score(decoder, input_ids, "angular").values == pytest.approx([0.25 / 2], rel=1e-6)
    assert score(decoder, input_ids, "angular", tokens="last").values == pytest.approx([0], abs=1e-7)
    assert score(decoder, input_ids, "relative-magnitude").values == pytest.approx([(half + 0.5) / 2], rel=1e-6)
    assert score(decoder, input_ids, "relative-magnitude", over="input").values == pytest.approx([1], rel=1e-6)
    # (0, -1/2) is turned round: cosine -1, half a turn.
    assert score(decoder, torch.tensor([[0, 3]]), "angular", tokens="last").values == pytest.approx([1], rel=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_token_is_the_last_that_is_not_padding(side: str):
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]] if side == "right" else [[1, 1, 1, 1], [0, 0, 1, 1]])
    expected = [[0, 0, 0, 1], [0, 1, 0, 0]] if side == "right" else [[0, 0, 0, 1], [0, 0, 0, 1]]
    assert token_weights(mask, mask.bool(), "last").tolist() == expected
    assert token_weights(mask, mask.bool(), "mean").tolist() == mask.tolist()
    assert token_weights(mask, torch.zeros_like(mask).bool(), "last").tolist() == [[0] * 4] * 2


# ShortGPT: one token of (1, 0) turned by 45 degrees and one of padding, turned round, in the first sample; two tokens
# turned by none and by 45 degrees in the second. Distances d, 2 and 0, d with d = 1 - sqrt(1/2).
PADDED = torch.tensor([[0, 3, 3], [1, 1, 0]])
PADDED_MASK = torch.tensor([[1, 0, 0], [1, 1, 1]])


def test_shortgpts_code_adds_tokens_up_and_counts_padding_where_the_formula_averages_tokens():
    d = 1 - math.sqrt(0.5)
    # A second block, so that the first one's output is not behind the final norm; (0, 0) keeps what it gets.
    decoder = constant_updates((0, 1), (0, 0))
    # Padding ids are not looked at: token 0 stands in their place, and is turned by 45 degrees too.
    faithful = score(decoder, PADDED, "block-influence", attention_mask=PADDED_MASK, variant="faithful")
    assert faithful.values[0] == pytest.approx(d + d + d + 0 + 0 + d, rel=1e-6)
    corrected = score(decoder, PADDED, "block-influence", attention_mask=PADDED_MASK)
    assert corrected.values[0] == pytest.approx((d + 0 + 0 + d) / 4, rel=1e-6)
    assert faithful.options == {"variant": "faithful"}
    assert corrected.options == {"tokens": "mean", "variant": "corrected"}


def test_optipfairs_code_averages_batches_of_unequal_token_counts_where_the_formula_averages_tokens():
    d = 1 - math.sqrt(0.5)
    decoder = constant_updates((0, 1), (0, 0))
    result = score(decoder, PADDED, "block-influence", attention_mask=PADDED_MASK, variant="optipfair", batch=1)
    assert result.values[0] == pytest.approx((d / 1 + d / 3) / 2, rel=1e-6)
    together = score(decoder, PADDED, "block-influence", attention_mask=PADDED_MASK, variant="optipfair", batch=2)
    assert together.values[0] == pytest.approx((d + d) / 4, rel=1e-6)


def test_batches_that_count_nothing_are_left_out_of_their_mean():
    sums, counts = torch.tensor([2.0, 0.0, 9.0]).double(), torch.tensor([4.0, 0.0, 3.0]).double()
    assert mean_of_means(sums, counts, 1) == pytest.approx((0.5 + 3) / 2)
    assert mean_of_means(sums, counts, 3) == pytest.approx(11 / 7)


@pytest.mark.parametrize("criterion", ["block-influence", "angular"])
def test_published_code_takes_the_last_output_behind_the_final_norm(criterion: str):
    # The norm weighs the coordinates 1 and 0: behind it (2, 2) points along the first, 45 degrees from before.
    decoder, input_ids = constant_updates((0, 0), (0, 0), norm=(1, 0)), torch.tensor([[4, 4]])
    assert score(decoder, input_ids, criterion).values == pytest.approx([0, 0], abs=1e-7)
    faithful = score(decoder, input_ids, criterion, variant="faithful").values
    turned = 2 * (1 - math.sqrt(0.5)) if criterion == "block-influence" else 0.25
    assert faithful[1] == pytest.approx(turned, rel=1e-6)


def test_prunemes_code_can_never_drop_the_first_block_where_the_formula_can():
    decoder, input_ids = constant_updates((0, 0), (0, 1), (0, 0)), torch.tensor([[1, 0]])
    corrected = score(decoder, input_ids, "angular", tokens="last")
    assert corrected.values == pytest.approx([0, 0.25, 0], abs=1e-7)
    assert corrected.order()[0] == ("block", 0)
    faithful = score(decoder, input_ids, "angular", variant="faithful")
    assert faithful.values == pytest.approx([math.inf, 0.25, 0], abs=1e-7)
    assert faithful.order() == [("block", 2), ("block", 1), ("block", 0)]
    assert faithful.options == {"tokens": "last", "variant": "faithful"}


def test_prunemes_code_on_the_states_that_transformers_returns():
    decoder, input_ids = load(SIZES), ids()
    mask = padding(input_ids)
    with torch.no_grad():
        hidden = model_of(decoder)(input_ids, attention_mask=mask, output_hidden_states=True).hidden_states
    ends_at = torch.tensor([8, 5, 4, 8])
    last = [state[torch.arange(4), ends_at] for state in hidden[1:]]
    expected = [float((cosine(x, y).arccos() / math.pi).mean()) for x, y in itertools.pairwise(last)]
    result = score(decoder, input_ids, "angular", attention_mask=mask, variant="faithful")
    assert result.values == pytest.approx([math.inf, *expected], rel=NEAR)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_windows_are_distances_between_states_that_many_blocks_apart(size: int):
    decoder, input_ids = load(SIZES), ids()
    mask = padding(input_ids)
    plain = states(decoder, input_ids, mask)
    stream = [plain["block", 0][0], *(plain["block", n][1] for n in range(4))]
    expected = {
        first: float((cosine(stream[first], stream[first + size]).arccos() / math.pi)[mask == 1].mean())
        for first in range(4 - size + 1)
    }
    assert window_distances(decoder, input_ids, size, mask) == pytest.approx(expected, rel=NEAR)
    if size == 1:
        single = score(decoder, input_ids, "angular", attention_mask=mask)
        assert list(expected.values()) == pytest.approx(single.values, rel=NEAR)


def test_windows_of_a_pruned_model_are_named_by_original_blocks():
    pruned = apply(load(SIZES), Pruning(blocks=[1]))
    assert list(window_distances(pruned, ids(), 2)) == [0, 2]


def test_llm_drops_code_reads_the_column_of_one_block_more_than_it_drops():
    # (1, 0) becomes (1, 1), (0, 1) and (0, 1) again: pairs of blocks turn it by 90 and by 45 degrees, all three by 90.
    decoder, input_ids = constant_updates((0, 1), (-1, 0), (0, 0)), torch.tensor([[0, 0]])
    corrected = window_distances(decoder, input_ids, 2, distance="block-influence")
    assert corrected == pytest.approx({0: 1, 1: 1 - math.sqrt(0.5)}, rel=1e-6)
    faithful = window_distances(decoder, input_ids, 2, distance="block-influence", variant="faithful")
    assert faithful == pytest.approx({0: 1, 1: math.inf}, rel=1e-6)


def test_prunemes_windows_never_begin_at_the_first_block():
    decoder, input_ids = constant_updates((0, 0), (0, 1), (0, 0)), torch.tensor([[1, 0]])
    assert window_distances(decoder, input_ids, 2) == pytest.approx({0: 0.125, 1: 0.125}, rel=1e-6)
    faithful = window_distances(decoder, input_ids, 2, variant="faithful")
    assert faithful == pytest.approx({0: math.inf, 1: 0.25}, rel=1e-6)


def test_less_memory_means_more_parts_and_the_same_scores():
    decoder, input_ids = load(SIZES), ids(samples=7)
    assert activation_dtype(decoder) == torch.float32
    expected = {name: score(decoder, input_ids, name).values for name in ("block-influence", "relative-magnitude")}
    windows = window_distances(decoder, input_ids, 2)
    tight = pass_bytes(LayeredDecoder(decoder), 1, 1, 9, 9) + 40 * 9 * 24
    steps = []
    for name, values in expected.items():
        result = score(decoder, input_ids, name, memory=tight, progress=lambda done, total: steps.append((done, total)))
        assert result.values == pytest.approx(values, rel=1e-6)
    assert steps[-1] == (7 * 4, 7 * 4)
    assert window_distances(decoder, input_ids, 2, memory=tight + (1 << 16)) == pytest.approx(windows, rel=1e-6)
    with pytest.raises(InputError, match="one sample of 9 tokens"):
        score(decoder, input_ids, "block-influence", memory=1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(size=0), "size: 0 given; 1 to 3 blocks"),
        (dict(size=4), "size: 4 given"),
        (dict(distance="cosine"), "distance: 'cosine' given; angular, block-influence are accepted"),
        (dict(tokens="first"), "tokens: 'first'"),
        (dict(variant="optipfair"), "variant: 'optipfair'"),
    ],
)
def test_windows_that_cannot_be_had_are_refused(change: dict, message: str):
    with pytest.raises(InputError, match=message):
        window_distances(**{"model": load(SIZES), "input_ids": ids(), "size": 1, **change})
