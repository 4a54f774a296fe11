"""Many candidates in one pass: any sets of sublayers, in any split, against one forward for each."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pyprune import InputError, Pruning, apply, load, perplexity, score
from pyprune.scoring import layered_decoder
from pyprune.scoring.evaluator import Evaluator
from pyprune.scoring.footprint import chunk_size, fit_pass, pass_bytes
from pyprune.scoring.layer_major import candidate_sums
from pyprune.scoring.layered_decoder import LayeredDecoder
from pyprune.scoring.losses import exp_mean
from pyprune.scoring.measures import Samples
from pyprune.scoring.measures.perplexity import Perplexity
from pyprune.scoring.perplexity import perplexities
from pyprune.scoring.removals import NO_REMOVAL, present_sublayers, removal_of
from pyprune.scoring.schedule import count_slots, make_schedule
from pyprune.scoring.state_store import StateStore
from tests import seeds
from tests.library import needs_library

S, T = 4, 13
CANDIDATES = [
    NO_REMOVAL,
    frozenset({0, 1}),
    frozenset({9}),
    frozenset({0, 1, 4, 5}),
    frozenset({0, 1, 9}),
    frozenset({2, 7}),
    frozenset({2, 7, 8}),
    frozenset({0, 1}),  # the same one twice
]


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    return torch.randint(0, 131, (S, T), generator=seeds.generator(5))


def losses(decoder, ids, mask, removals, rows: int, store: StateStore | None = None) -> torch.Tensor:
    """The losses of candidates in one pass, `[candidates, S]`."""
    stored = None if store is None else store.has
    schedule = make_schedule(len(decoder.blocks), present_sublayers(decoder), removals, stored)
    ppl = Perplexity(Samples(ids, mask))
    return candidate_sums(LayeredDecoder(decoder), ids, mask, schedule, [ppl], rows=rows, store=store)[0]


def one_by_one(decoder, ids) -> list[float]:
    values = []
    for removal in CANDIDATES:
        pruning = Pruning(
            mha=[decoder.blocks[p // 2].index for p in removal if p % 2 == 0],
            ffn=[decoder.blocks[p // 2].index for p in removal if p % 2],
        )
        values.append(perplexity(apply(decoder, pruning), ids))
    return values


def test_any_sets_of_sublayers_equal_one_forward_each(tiny, samples):
    assert perplexities(tiny, samples, None, CANDIDATES) == pytest.approx(one_by_one(tiny, samples), rel=1e-6)


def test_candidates_that_begin_alike_share_their_states():
    present = frozenset(range(2 * 4))
    singles = [NO_REMOVAL, *(frozenset({2 * b, 2 * b + 1}) for b in range(4))]
    schedule = make_schedule(4, present, singles)
    assert schedule.slots == count_slots(present, singles) == 5
    # Block b runs for the whole model and for every candidate before b: 1 + 2 + 3 + 4 states, two sublayers each.
    assert schedule.sublayer_passes == 2 * (1 + 2 + 3 + 4)
    same = [NO_REMOVAL, NO_REMOVAL, frozenset({99})]
    assert make_schedule(4, present, same).slots == count_slots(present, same) == 1
    assert make_schedule(4, present - {2}, [frozenset({2})]).sublayer_passes == 7


def test_every_state_runs_through_what_its_candidates_have():
    present = frozenset(range(10))
    schedule = make_schedule(5, present, CANDIDATES)
    for removal, slot in zip(CANDIDATES, schedule.slot_of, strict=True):
        assert schedule.steps[-1].edits_before_next[slot] == removal
    runs = [slot for step in schedule.steps for sublayer in step.sublayers for slot in sublayer.slots]
    assert len(runs) == schedule.sublayer_passes
    prefixes = {(p, frozenset(q for q in r if q < p)) for r in CANDIDATES for p in present - r}
    assert schedule.sublayer_passes == len(prefixes)  # each different prefix runs each sublayer once, and no more


@pytest.mark.parametrize("rows", [T, 3 * T + 1, 10_000])
def test_chunks_do_not_change_the_sums(tiny, samples, rows: int):
    result = losses(tiny, samples, None, CANDIDATES, rows=rows)
    assert [exp_mean(float(t), S * (T - 1)) for t in result.sum(1)] == pytest.approx(
        one_by_one(tiny, samples), rel=1e-6
    )


def test_a_memory_limit_splits_samples_then_candidates_and_changes_nothing(tiny, samples):
    count, slots = len(CANDIDATES), count_slots(present_sublayers(tiny), CANDIDATES)
    unlimited = fit_pass(LayeredDecoder(tiny), (S, T), count, slots, None)
    assert (unlimited.samples, unlimited.candidates) == (S, count)
    expected = perplexities(tiny, samples, None, CANDIDATES)
    two_samples = pass_bytes(LayeredDecoder(tiny), 7, 2, T, unlimited.rows)
    two_candidates = pass_bytes(LayeredDecoder(tiny), 2, 1, T, T)
    assert fit_pass(LayeredDecoder(tiny), (S, T), count, slots, two_samples).samples == 2
    size = fit_pass(LayeredDecoder(tiny), (S, T), count, slots, two_candidates)
    assert (size.samples, size.candidates) == (1, 2)
    for limit in (two_samples, two_candidates, pass_bytes(LayeredDecoder(tiny), 1, 1, T, T)):
        assert fit_pass(LayeredDecoder(tiny), (S, T), count, slots, limit).bytes <= limit
        assert perplexities(tiny, samples, None, CANDIDATES, memory=limit) == pytest.approx(expected, rel=1e-6)


def test_embeddings_are_made_a_few_samples_at_a_time(tiny, monkeypatch):
    made = []

    def embed(decoder, ids):
        made.append(len(ids))
        return plain_embed(decoder, ids)

    plain_embed = layered_decoder.embed
    monkeypatch.setattr(layered_decoder, "embed", embed)
    ids = torch.randint(0, tiny.vocab_size, (37, 5), generator=seeds.generator(2))
    perplexity(tiny, ids)
    assert sum(made) == 37
    assert max(made) <= layered_decoder.EMBEDDED < 37


def test_too_little_memory_is_refused_with_what_is_needed(tiny, samples):
    with pytest.raises(InputError, match=r"memory: 1.0 MB given; one sample of 13 tokens of .* needs \d+\.\d MB"):
        score(tiny, samples, memory=10**6, progress=lambda *_: pytest.fail("work was done"))


def test_padding_stays_with_its_sample_in_every_split(tiny, samples):
    mask = torch.ones_like(samples)
    mask[1, :6] = 0
    mask[3, 9:] = 0
    few = pass_bytes(LayeredDecoder(tiny), 2, 1, T, T, padded=True)
    whole = score(tiny, samples, attention_mask=mask)
    parts = score(tiny, samples, attention_mask=mask, memory=few)
    assert parts.values == pytest.approx(whole.values, rel=1e-6)
    assert parts.baseline == pytest.approx(whole.baseline, rel=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_stored_states_begin_later_passes_where_they_agree(tiny, samples, stride: int):
    store = StateStore(1 << 30, stride)
    singles = [NO_REMOVAL, *(frozenset({2 * b, 2 * b + 1}) for b in range(5))]
    losses(tiny, samples, None, singles, rows=1000, store=store)
    removed = singles[3]  # block 2
    store.set_removed(removed)
    second = [removed | sample for sample in singles[1:] if sample != removed]
    fresh = make_schedule(5, present_sublayers(tiny), second)
    resumed = make_schedule(5, present_sublayers(tiny), second, store.has)
    assert resumed.sublayer_passes < fresh.sublayer_passes
    result = losses(tiny, samples, None, second, rows=1000, store=store)
    values = [exp_mean(float(total), S * (T - 1)) for total in result.sum(1)]
    assert values == pytest.approx(perplexities(tiny, samples, None, second), rel=1e-6)


def test_a_store_keeps_no_more_than_its_limit(tiny, samples):
    state = S * T * tiny.hidden_size * 4
    store = StateStore(3 * state + 1)
    losses(tiny, samples, None, CANDIDATES, rows=1000, store=store)
    assert len(store) == 3


def test_units_become_sublayers_of_a_pruned_decoder(tiny):
    pruned = apply(tiny, Pruning(blocks=[1], ffn=[3]))
    assert removal_of(pruned, [("block", 2), ("mha", 4)]) == frozenset({2, 3, 6})
    assert present_sublayers(pruned) == frozenset({0, 1, 2, 3, 4, 6, 7})
    with pytest.raises(InputError, match=r"block 1: .* has blocks 0, 2-4"):
        removal_of(pruned, [("block", 1)])


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_every_family_and_every_unit_equal_the_loop(family: str):
    decoder = load(f"shape:hidden=24,blocks=3,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=97,family={family}")
    ids = torch.randint(0, 97, (2, 11), generator=seeds.generator(3))
    for unit, key in (("block", "blocks"), ("mha", "mha"), ("ffn", "ffn")):
        expected = [perplexity(apply(decoder, Pruning(**{key: [n]})), ids) for n in range(3)]
        assert score(decoder, ids, unit=unit).values == pytest.approx(expected, rel=1e-6)


def test_sums_over_parts_are_over_all_positions(tiny, samples):
    parts = [losses(tiny, part, None, [NO_REMOVAL], rows=1000) for part in samples.split(3)]
    total = float(torch.cat(parts, 1).sum())
    assert math.exp(total / (S * (T - 1))) == pytest.approx(perplexity(tiny, samples), rel=1e-6)


def test_windows_of_blocks_keep_shared_beginnings(tiny, samples):
    windows = [frozenset(range(2 * a, 2 * b)) for a, b in itertools.combinations(range(6), 2) if b - a < 5]
    expected = [
        perplexity(apply(tiny, Pruning(blocks=sorted({p // 2 for p in window}))), samples) for window in windows
    ]
    assert perplexities(tiny, samples, None, windows) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("remaining", "sizes"), [(7, [6, 1]), (13, [12, 1]), (19, [16, 3]), (47, [20, 20, 6, 1]), (20, [20])]
)
def test_what_is_left_goes_in_chunks_of_few_different_sizes(remaining: int, sizes: list[int]):
    result = []
    while remaining:
        result.append(chunk_size(remaining, 20))
        remaining -= result[-1]
    assert result == sizes
    assert len({chunk_size(n, 1000) for n in range(1, 1001)}) == 20  # 2^k, 3 * 2^k and the whole chunk


@pytest.mark.parametrize("tokens", [3, 13, 64])
@needs_library
def test_a_sequence_comes_out_the_same_in_any_company(tiny, tokens: int):
    """Few rows have kernels of their own; how the work is cut must not show, or several processes would not agree."""
    ids = torch.randint(0, 131, (8, tokens), generator=seeds.generator(tokens))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[5, 0] = False
    together = losses(tiny, ids, mask, CANDIDATES, rows=10_000)
    for sample in range(len(ids)):
        alone = losses(tiny, ids[sample : sample + 1], mask[sample : sample + 1], CANDIDATES, rows=1)
        assert alone[:, 0].tolist() == pytest.approx(together[:, sample].tolist(), rel=1e-7)


def test_a_loss_that_is_no_number_names_the_blocks_that_are_gone(tiny, samples):
    broken = tiny.map(torch.clone)
    broken.blocks[3].ffn.down.weight[2, 5] = float("nan")
    with pytest.raises(ArithmeticError, match=r"^the unpruned model: the loss is not a number"):
        perplexity(broken, samples)
    evaluator = Evaluator(broken, samples, None)
    with pytest.raises(ArithmeticError, match=r"^with changes in block 2, 4: the loss is not a number"):
        evaluator.perplexities([removal_of(broken, [("block", 2), ("ffn", 4)])])
