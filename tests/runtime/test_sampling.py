from __future__ import annotations

import pytest
import torch

from pyprune import InputError
from pyprune.runtime.sampling import Sampling

LOGITS = torch.log(torch.tensor([[0.5, 0.2, 0.2, 0.06, 0.04]]))


def drawn(sampling: Sampling, times: int = 4000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = sampling.choose(LOGITS.expand(times, -1), generator)
    return torch.bincount(tokens, minlength=5) / times


def test_temperature_zero_is_greedy_and_takes_the_first_of_equals():
    assert Sampling().choose(torch.tensor([[1.0, 3.0, 3.0], [5.0, 0.0, 0.0]])).tolist() == [1, 0]


def test_frequencies_follow_the_softmax():
    torch.testing.assert_close(drawn(Sampling(1.0)), LOGITS.exp()[0], atol=0.03, rtol=0)


def test_a_tiny_temperature_is_greedy():
    assert Sampling(1e-38).choose(torch.tensor([[1.0, 20.0]])).tolist() == [1]


def test_temperature_sharpens():
    expected = (LOGITS / 0.5).softmax(-1)[0]
    torch.testing.assert_close(drawn(Sampling(0.5)), expected, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1.0, top_k=1), {0}),
        (Sampling(1.0, top_k=3), {0, 1, 2}),
        (Sampling(1.0, top_k=99), {0, 1, 2, 3, 4}),
        (Sampling(1.0, top_p=0.5), {0}),
        (Sampling(1.0, top_p=0.51), {0, 1}),
        (Sampling(1.0, top_p=0.95), {0, 1, 2, 3}),
        (Sampling(1.0, top_p=1e-9), {0}),
    ],
)
def test_top_k_and_top_p_keep_just_the_best(sampling: Sampling, kept: set[int]):
    found = set(drawn(sampling).nonzero().flatten().tolist())
    assert found == kept


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_top_k_keeps_just_k_even_of_equals(top_k: int):
    assert len(drawn(Sampling(1.0, top_k=top_k, top_p=0.999)).nonzero()) == top_k


@pytest.mark.parametrize(
    "bad", [dict(temperature=-1.0), dict(temperature=float("nan")), dict(top_k=0), dict(top_p=0.0), dict(top_p=1.5)]
)
def test_bad_settings_are_refused(bad: dict):
    with pytest.raises(InputError, match=next(iter(bad))):
        Sampling(**bad)
