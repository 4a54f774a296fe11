from __future__ import annotations

import dataclasses
import typing

import pytest
import torch

from pyprune import InputError
from pyprune.runtime.sampling import choose, filtered, log_probability, penalized, uniforms
from pyprune.runtime.sampling_params import SamplingOptions, SamplingParams, sampling_params
from tests import seeds
from tests.judge import assert_no_worse_than_torch

LOGITS = torch.log(torch.tensor([[0.5, 0.2, 0.2, 0.06, 0.04]]))


def drawn(params: SamplingParams, times: int = 4000) -> torch.Tensor:
    tokens = choose(LOGITS.expand(times, -1), params, uniforms(seeds.seed(), 1, times, LOGITS.device)[0])
    return torch.bincount(tokens, minlength=5) / times


def test_temperature_zero_is_greedy_and_takes_the_first_of_equals():
    assert choose(torch.tensor([[1.0, 3.0, 3.0], [5.0, 0.0, 0.0]]), SamplingParams(), None).tolist() == [1, 0]


def test_frequencies_follow_the_softmax():
    torch.testing.assert_close(drawn(SamplingParams(temperature=1.0)), LOGITS.exp()[0], atol=0.03, rtol=0)


def test_a_tiny_temperature_is_greedy():
    tokens = choose(torch.tensor([[1.0, 20.0]]), SamplingParams(temperature=1e-6), torch.zeros(1).double())
    assert tokens.tolist() == [1]


def test_temperature_sharpens():
    expected = (LOGITS / 0.5).softmax(-1)[0]
    torch.testing.assert_close(drawn(SamplingParams(temperature=0.5)), expected, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(temperature=1.0, top_k=1), {0}),
        (SamplingParams(temperature=1.0, top_k=3), {0, 1, 2}),
        (SamplingParams(temperature=1.0, top_k=99), {0, 1, 2, 3, 4}),
        (SamplingParams(temperature=1.0, top_p=0.5), {0}),
        (SamplingParams(temperature=1.0, top_p=0.51), {0, 1}),
        (SamplingParams(temperature=1.0, top_p=0.95), {0, 1, 2, 3}),
        (SamplingParams(temperature=1.0, top_p=1e-9), {0}),
        (SamplingParams(temperature=1.0, min_p=0.0), {0, 1, 2, 3, 4}),
        (SamplingParams(temperature=1.0, min_p=0.1), {0, 1, 2, 3}),
        (SamplingParams(temperature=1.0, min_p=1.0), {0}),
        (SamplingParams(temperature=0.5, min_p=0.1), {0, 1, 2}),
    ],
)
def test_top_k_and_top_p_keep_just_the_best(params: SamplingParams, kept: set[int]):
    found = set(drawn(params).nonzero().flatten().tolist())
    assert found == kept


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_top_k_keeps_just_k_even_of_equals(top_k: int):
    assert len(drawn(SamplingParams(temperature=1.0, top_k=top_k, top_p=0.999)).nonzero()) == top_k


@pytest.mark.parametrize(
    "bad",
    [
        dict(temperature=-1.0), dict(temperature=float("nan")), dict(top_k=0), dict(top_p=0.0), dict(top_p=1.5),
        dict(min_p=-0.1), dict(min_p=1.1), dict(min_p=float("nan")), dict(repetition_penalty=0.0),
        dict(repetition_penalty=float("inf")), dict(temperature="1"), dict(temperature=None), dict(temperature=True),
        dict(top_k=True), dict(top_k=2.5), dict(top_k="3"), dict(top_p="0.5"), dict(min_p=[0.5]),
        dict(repetition_penalty=None),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(bad: dict):
    with pytest.raises(InputError, match=next(iter(bad))):
        SamplingParams(**bad)


@pytest.mark.parametrize("unused", [dict(top_k=3), dict(top_p=0.5), dict(min_p=0.1), dict(top_k=3, min_p=0.1)], ids=str)
def test_what_a_greedy_choice_ignores_is_said(unused: dict):
    with pytest.warns(UserWarning, match=f"no effect of {', '.join(unused)}$"):
        SamplingParams(temperature=0.0, **unused)


def test_the_keywords_of_generate_are_the_fields_of_the_parameters():
    assert typing.get_type_hints(SamplingOptions) == typing.get_type_hints(SamplingParams)


def test_parameters_are_frozen_and_hold_what_iterators_gave():
    params = SamplingParams(max_new_tokens=iter([3, 4]), eos_token_id=[[1], [2, torch.tensor(3)]])
    assert params.max_new_tokens == (3, 4)
    assert params.eos_token_id == ((1,), (2, 3))
    assert hash(params) == hash(SamplingParams(max_new_tokens=[3, 4], eos_token_id=[(1,), (2, 3)]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.seed = 3


def test_parameters_or_keywords_but_not_both():
    params = SamplingParams(seed=3)
    assert sampling_params(params, {}) is params
    assert sampling_params(None, {"seed": 3}) == params
    with pytest.raises(InputError, match="seed: given beside params"):
        sampling_params(params, {"seed": 3})
    with pytest.raises(InputError, match="params: a dict given"):
        sampling_params({"seed": 3}, {})


def test_a_plain_greedy_choice_and_sampling_warn_of_nothing(recwarn):
    SamplingParams()
    SamplingParams(temperature=0.0, repetition_penalty=1.2)
    SamplingParams(temperature=0.7, top_k=3, top_p=0.5, min_p=0.1)
    assert not recwarn.list


def random_logits(rows: int = 6, vocab: int = 97) -> torch.Tensor:
    return 4 * torch.randn(rows, vocab, generator=seeds.generator(2))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [None, 1, 20])
@pytest.mark.parametrize("top_p", [None, 0.2, 0.9])
@pytest.mark.parametrize("min_p", [None, 0.05])
def test_distributions_equal_those_of_transformers(temperature, top_k, top_p, min_p):
    from transformers.generation import logits_process as theirs

    logits, ids = random_logits(), torch.zeros(6, 1, dtype=torch.long)
    expected = theirs.TemperatureLogitsWarper(temperature)(ids, logits)
    if top_k is not None:
        expected = theirs.TopKLogitsWarper(top_k)(ids, expected)
    if top_p is not None:
        expected = theirs.TopPLogitsWarper(top_p)(ids, expected)
    if min_p is not None:
        expected = theirs.MinPLogitsWarper(min_p)(ids, expected)
    ours = filtered(logits, SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))
    kept = expected.isfinite()
    assert torch.equal(ours.isfinite(), kept)
    exact = (logits.double() / temperature).masked_fill(~kept, -torch.inf).softmax(-1)
    assert_no_worse_than_torch(ours.softmax(-1), expected.softmax(-1), exact)


@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_the_repetition_penalty_equals_that_of_transformers(penalty: float):
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, ids = random_logits(), torch.randint(0, 97, (6, 30), generator=seeds.generator(3))
    held = torch.zeros(6, 97, dtype=torch.bool).scatter_(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    assert torch.equal(penalized(logits, held, penalty), expected)
    greedy = choose(logits, SamplingParams(repetition_penalty=penalty), None, held)
    assert torch.equal(greedy, expected.argmax(-1))


def test_rare_tokens_keep_their_share():
    """A point falls to the token whose share of the distribution holds it, however thin."""
    logits = torch.full((1, 60_000), -18.0)
    logits[0, 7] = 0.0
    share = (logits[0].double().softmax(-1))[8:].sum()
    point = torch.tensor([1 - 0.5 * float(share)], dtype=torch.float64)
    assert abs(int(choose(logits, SamplingParams(temperature=1.0), point)) - (7 + 60_000) / 2) < 10


@pytest.mark.parametrize("point", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_give_tokens_that_are_kept(point: float):
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]]).repeat(3, 1)
    drawn = choose(logits, SamplingParams(temperature=1.0), torch.full((3,), point, dtype=torch.float64))
    assert drawn.tolist() == [1 if point == 0 else 2] * 3


def test_uniforms_begin_alike_for_any_length_and_batch_and_differ_between_seeds_and_rows():
    cpu = torch.device("cpu")
    long = uniforms(7, 5, 40, cpu)
    assert torch.equal(uniforms(7, 2, 3, cpu), long[:2, :3])
    others = torch.cat([long.flatten(), uniforms(8, 5, 40, cpu).flatten(), uniforms(2**40 + 7, 5, 40, cpu).flatten()])
    assert len(others.unique()) == 600
    assert 0 <= float(others.min()) < 0.02
    assert 0.98 < float(others.max()) < 1


@pytest.mark.parametrize("seed", [-1, 1.5, True, 2**63, "1"])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(InputError, match="seed"):
        SamplingParams(seed=seed)


def test_log_probabilities_equal_the_definition_in_float64():
    logits, tokens = random_logits(), torch.tensor([0, 96, 5, 5, 17, 40])
    plain, exact = (values.log_softmax(-1)[torch.arange(6), tokens] for values in (logits, logits.double()))
    assert_no_worse_than_torch(log_probability(logits, tokens), plain, exact)
