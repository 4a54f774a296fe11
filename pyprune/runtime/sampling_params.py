"""How a batch of sequences is continued: `SamplingParams`, checked when made, whatever the batch will be."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypedDict

from pyprune.checks import is_number, is_whole, require_whole
from pyprune.errors import InputError

MAX_SEED = 2**63 - 1

FILTERS = ("top_k", "top_p", "min_p")
"""What cuts the distribution that a temperature gives; a greedy choice has none."""

TokenLimits = int | Iterable[int]
"""The most new tokens of all sequences, or of each."""

StopIds = None | int | Iterable[int] | Iterable[Iterable[int]]
"""Nothing, one token id, ids for all sequences, or a list of ids for each sequence."""


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` as the keywords that `Engine.generate` and `Engine.stream` take."""

    max_new_tokens: TokenLimits
    eos_token_id: StopIds
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    seed: int | None
    logprobs: bool


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """When the sequences of a batch end, and how their tokens are chosen from logits.

    max_new_tokens: for all sequences, or one number for each. eos_token_id: an id, ids for all, or a list of ids for
    each sequence; without it no token ends a sequence.

    First comes `repetition_penalty` (CTRL, Keskar et al. 2019, as transformers has it): the logit of each token that
    the sequence already holds, in prompt or new tokens, padding not counted, is divided by it where positive and
    multiplied by it where negative. Then greedy at temperature 0; else from softmax(logits / temperature) over the
    `top_k` best tokens, cut to the smallest set whose probability reaches `top_p` (nucleus sampling, Holtzman et al.
    2020), less the tokens whose probability is below `min_p` times the best one's.

    seed: 0 to 2^63 - 1; sampling repeats itself, and sequence b draws the same numbers whatever the size of the batch.
    logprobs: also give the log-probability of each chosen token.

    InputError for a value out of range; a warning for filters without effect, at temperature 0.
    """

    max_new_tokens: TokenLimits = 32
    eos_token_id: StopIds = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    logprobs: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_new_tokens", _checked_limits(self.max_new_tokens))
        object.__setattr__(self, "eos_token_id", _checked_stop_ids(self.eos_token_id))
        if self.top_k is not None:
            require_whole("top_k", self.top_k, 1)
        if self.seed is not None:
            object.__setattr__(self, "seed", require_whole("seed", self.seed, 0, MAX_SEED))
        # The bounds keep every score finite in float32.
        for name, accepted, in_range in (
            ("temperature", "0 (greedy), or 1e-6 to 1e6", lambda value: value == 0 or 1e-6 <= value <= 1e6),
            ("top_p", "more than 0 and at most 1", lambda value: 0 < value <= 1),
            ("min_p", "0 to 1", lambda value: 0 <= value <= 1),
            ("repetition_penalty", "0.001 to 1000", lambda value: 1e-3 <= value <= 1e3),
        ):
            value, optional = getattr(self, name), name in FILTERS
            if not (optional and value is None) and not (is_number(value) and in_range(value)):
                raise InputError(f"{name}: {value!r} given; {accepted} is accepted")
        if self.temperature == 0 and (unused := [name for name in FILTERS if getattr(self, name) is not None]):
            warnings.warn(f"temperature 0 takes the likeliest token: no effect of {', '.join(unused)}", stacklevel=3)

    @property
    def penalizes(self) -> bool:
        """Whether it matters which tokens a sequence already holds."""
        return self.repetition_penalty != 1


def sampling_params(params: SamplingParams | None, options: SamplingOptions) -> SamplingParams:
    """`params`, or what the keywords `options` name. InputError where both are given, or `params` is something else."""
    if params is None:
        return SamplingParams(**options)
    if not isinstance(params, SamplingParams):
        raise InputError(f"params: a {type(params).__name__} given; SamplingParams are accepted")
    if options:
        raise InputError(f"{next(iter(options))}: given beside params; one or the other is accepted")
    return params


def _checked_limits(max_new_tokens: TokenLimits) -> int | tuple[int, ...]:
    limits: int | tuple[int, ...]
    if is_whole(max_new_tokens):
        limits = lowest = operator.index(max_new_tokens)
    else:
        limits = each = _whole_numbers(max_new_tokens, "max_new_tokens")
        lowest = min(each, default=1)
    if lowest < 1:
        raise InputError(f"max_new_tokens: {lowest} given; 1 or more is accepted")
    return limits


def _checked_stop_ids(eos_token_id: StopIds) -> int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None:
    if eos_token_id is None:
        return None
    if is_whole(eos_token_id):
        return operator.index(eos_token_id)
    values = _listed(eos_token_id, "eos_token_id")
    if values and not any(is_whole(value) for value in values):
        return tuple(_whole_numbers(value, "eos_token_id") for value in values)
    return _whole_numbers(values, "eos_token_id")


def _listed(values: Any, name: str) -> list[Any]:
    try:
        if not isinstance(values, (str, bytes)):
            return list(values)
    except TypeError:
        pass
    raise InputError(f"{name}: {values!r} given; a whole number or a list of them is accepted")


def _whole_numbers(values: Any, name: str) -> tuple[int, ...]:
    values = _listed(values, name)
    for value in values:
        if not is_whole(value) or not -(2**63) <= operator.index(value) < 2**63:
            raise InputError(f"{name}: {value!r} given; whole numbers of at most 64 bits are accepted")
    return tuple(operator.index(value) for value in values)
