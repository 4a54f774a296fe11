"""Sequences that begin alike, read together: as each one alone, and with the fewest tokens."""

from __future__ import annotations

import random

import pytest
import torch

import pyprune
from pyprune.runtime import shared_context
from pyprune.runtime.sequence import embed, run_block
from pyprune.runtime.shared_context import Family, Pack, families, packs, shared_states
from pyprune.runtime.skip import skip_plan
from tests import seeds

SLIDING = "shape:hidden=48,blocks=3,heads=6,kv_heads=2,head_dim=10,ffn=71,vocab=131,family=mistral,window=7"


def drawn(documents: int, vocab: int = 131) -> list[list[int]]:
    """Sequences of which some begin with the same context, or are the same."""
    draw = random.Random(seeds.seed())
    sequences = []
    for _ in range(documents):
        context = [draw.randrange(vocab) for _ in range(draw.randrange(1, 30))]
        endings = [[draw.randrange(vocab) for _ in range(draw.randrange(0, 25))] for _ in range(draw.randrange(1, 5))]
        sequences += [context + ending for ending in endings]
    return [*sequences, sequences[0]]


def alone(decoder, sequence: list[int], skip=None) -> torch.Tensor:
    """A sequence by itself, block by block."""
    plan = skip_plan(decoder, skip)
    x = embed(decoder, torch.tensor([sequence]))
    cos, sin = decoder.rope.tables(len(sequence))
    for i, block in enumerate(decoder.blocks):
        if plan.mha[i] or plan.ffn[i]:
            x = run_block(block, x, cos, sin, decoder.eps)
    return x[0]


@pytest.mark.parametrize("sdpa", [False, True], ids=["operator", "SDPA"])
@pytest.mark.parametrize("shape", [None, SLIDING], ids=["full", "sliding window"])
def test_states_are_those_of_each_sequence_alone(tiny, monkeypatch, sdpa: bool, shape: str | None):
    decoder = tiny if shape is None else pyprune.load(shape)
    if sdpa:
        monkeypatch.setattr(shared_context, "runs_operator", lambda tokens, device: False)
    sequences = drawn(5)
    skip = [1]
    for pack in packs(families(sequences, 90), 120):
        laid = Pack(pack, decoder.device)
        states = shared_states(decoder, laid, skip_plan(decoder, skip))
        for i, family in enumerate(pack):
            for branch, member in enumerate(family.members):
                rows = [laid.row(i, branch, position) for position in range(len(sequences[member]))]
                assert laid.ids[rows].tolist() == sequences[member]
                torch.testing.assert_close(states[rows], alone(decoder, sequences[member], skip), atol=2e-5, rtol=1e-4)


def test_families_hold_every_sequence_once():
    sequences = drawn(8)
    groups = families(sequences, 100)
    members = [member for family in groups for member in family.members]
    assert sorted(members) == list(range(len(sequences)))
    for family in groups:
        for branch, member in zip(family.branches, family.members, strict=True):
            assert [*family.prefix, *branch] == sequences[member]
        assert family.prefix
        assert len(family.members) == 1 or family.tokens <= 100


def fewest_tokens(sequences: list[list[int]], most_tokens: int) -> int:
    """The best division into runs of the sorted sequences, by trying every one."""
    if not sequences:
        return 0
    best = float("inf")
    for size in range(1, len(sequences) + 1):
        run = sequences[:size]
        prefix = len(run[0]) if size == 1 else shared_context._shared(run[0], run[-1])
        tokens = sum(map(len, run)) - (size - 1) * prefix
        if size == 1 or (prefix and tokens <= most_tokens):
            best = min(best, tokens + fewest_tokens(sequences[size:], most_tokens))
    return int(best)


def test_families_read_the_fewest_tokens():
    draw = random.Random(seeds.seed())
    for _ in range(20):
        sequences = [[draw.randrange(2) for _ in range(draw.randrange(1, 9))] for _ in range(7)]
        read = sum(family.tokens for family in families(sequences, 12))
        assert read == fewest_tokens(sorted(sequences), 12)


def test_a_context_is_read_once_for_all_its_endings():
    context = list(range(50))
    sequences = [[*context, 60], [*context, 61, 62], [*context], [70, 71]]
    groups = families(sequences, 1000)
    assert sum(family.tokens for family in groups) == 50 + 1 + 2 + 0 + 2


def test_packs_keep_to_the_tokens_and_put_similar_lengths_together():
    groups = [Family([1] * length, [[]], [i]) for i, length in enumerate((3, 40, 5, 38, 200, 4))]
    lengths = [[family.longest for family in pack] for pack in packs(groups, 80)]
    assert lengths == [[200], [40, 38], [5, 4, 3]]


def test_no_sequences_make_no_families():
    assert families([], 10) == []
    assert list(packs([], 10)) == []
