"""Endings behind their contexts: log-likelihoods and greediness as whole logits give them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import pyprune
from pyprune.runtime.endings import Ending, answers, ending
from pyprune.runtime.sequence import embed, run_block
from pyprune.runtime.skip import skip_plan
from tests.runtime.test_shared_context import drawn

DYNAMIC_LIMIT = 24


def naive(decoder, one: Ending) -> tuple[float, bool]:
    """By whole logits, in float64 behind the blocks."""
    x = embed(decoder, torch.tensor([one.read]))
    cos, sin = decoder.rope.tables(len(one.read), prompt=len(one.read))
    for block in decoder.blocks:
        x = run_block(block, x, cos, sin, decoder.eps)
    h = x[0, -len(one.targets) :].double()
    h = h * torch.rsqrt((h * h).mean(-1, keepdim=True) + decoder.eps) * decoder.norm.double()
    logits = h @ decoder.head.weight.double().T
    targets = torch.tensor(one.targets)
    chosen = logits.log_softmax(-1).gather(1, targets[:, None])
    return float(chosen.sum()), bool((logits.argmax(-1) == targets).all())


def greedy_ending(decoder, context: list[int], tokens: int) -> Ending:
    new = pyprune.Engine(decoder, 1, len(context) + tokens).generate(torch.tensor([context]), max_new_tokens=tokens)
    return ending(context, new[0].tolist(), 1000)


@pytest.mark.parametrize("limit", [None, DYNAMIC_LIMIT], ids=["plain", "rotation by length"])
def test_answers_are_those_of_whole_logits(tiny, limit: int | None):
    decoder = tiny if limit is None else dataclasses.replace(
        tiny, rope=dataclasses.replace(tiny.rope, kind="dynamic", limit=limit, factor=2.0)
    )  # fmt: skip
    endings = [ending(sequence[: len(sequence) // 2], sequence[len(sequence) // 2 :], 1000)
               for sequence in drawn(4) if len(sequence) > 2]  # fmt: skip
    if limit is None:
        context = endings[0].read
        likely = greedy_ending(decoder, context, 6)
        nearly = ending(context, [*likely.targets[:3], (likely.targets[3] + 1) % 131, *likely.targets[4:]], 1000)
        endings += [likely, nearly, ending(context, likely.targets[:1], 1000)]
    got = dict(answers(decoder, endings, skip_plan(decoder), 100))
    assert sorted(got) == list(range(len(endings)))
    expected = [naive(decoder, one) for one in endings]
    for place, (value, greedy) in enumerate(expected):
        assert got[place].log_likelihood == pytest.approx(value, rel=1e-5, abs=1e-4)
        assert got[place].is_greedy == greedy
    if limit is None:
        assert [greedy for _, greedy in expected[-3:]] == [True, False, True]


def test_a_certain_ending_is_greedy_without_its_logits(tiny):
    """With more than half of the probability a token is the likeliest: a sharp head has many such."""
    sharp = dataclasses.replace(tiny, head=dataclasses.replace(tiny.head, weight=tiny.head.weight * 40))
    likely = greedy_ending(sharp, [5, 6, 7], 8)
    ((_, answer),) = answers(sharp, [likely], skip_plan(sharp), 100)
    assert answer.log_likelihood > 8 * math.log(0.5)
    assert answer.is_greedy


def test_a_loss_that_is_not_a_number_is_not_greedy(tiny):
    broken = dataclasses.replace(tiny, norm=tiny.norm * math.nan)
    ((_, answer),) = answers(broken, [ending([1, 2], [3], 10)], skip_plan(broken), 100)
    assert math.isnan(answer.log_likelihood)
    assert not answer.is_greedy


def test_a_context_loses_its_first_tokens():
    assert ending([1, 2, 3, 4], [5, 6], 4) == Ending([2, 3, 4, 5], [5, 6])
    assert ending([1, 2], [5, 6], 2) == Ending([2, 5], [5, 6])
