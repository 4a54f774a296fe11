"""When a sequence of a batch ends: its number of new tokens, and the tokens that end it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pyprune.checks import is_whole
from pyprune.errors import InputError

StopIds = None | int | Iterable[int] | Iterable[Iterable[int]]
"""Nothing, one token id, ids for all sequences, or a list of ids for each sequence."""


def token_limits(max_new_tokens: int | Iterable[int], batch: int) -> list[int]:
    """The most new tokens of each sequence. InputError for anything but a positive number, or `batch` of them."""
    if is_whole(max_new_tokens):
        limits = [max_new_tokens.__index__()] * batch
    else:
        limits = _whole_numbers(max_new_tokens, "max_new_tokens")
        if len(limits) != batch:
            raise InputError(
                f"max_new_tokens: {len(limits)} numbers given; one, or {batch} (one for each sequence) are accepted"
            )
    if min(limits) < 1:
        raise InputError(f"max_new_tokens: {min(limits)} given; 1 or more is accepted")
    return limits


def stop_ids(eos_token_id: StopIds, batch: int, device: torch.device) -> Tensor | None:
    """The ids that end each sequence, `[1 or B, ids]` filled up with -1; None without any."""
    if eos_token_id is None:
        return None
    given = [eos_token_id] if is_whole(eos_token_id) else _listed(eos_token_id, "eos_token_id")
    if given and not any(is_whole(value) for value in given):
        rows = [_whole_numbers(value, "eos_token_id") for value in given]
        if len(rows) != batch:
            raise InputError(
                f"eos_token_id: lists for {len(rows)} sequences given; {batch}, one for each sequence, are accepted"
            )
    else:
        rows = [_whole_numbers(given, "eos_token_id")]
    longest = max(len(row) for row in rows)
    if not longest:
        return None
    return torch.tensor([row + [-1] * (longest - len(row)) for row in rows], device=device)


def _listed(values: Any, name: str) -> list[Any]:
    try:
        if not isinstance(values, (str, bytes)):
            return list(values)
    except TypeError:
        pass
    raise InputError(f"{name}: {values!r} given; a whole number or a list of them is accepted")


def _whole_numbers(values: Any, name: str) -> list[int]:
    listed = _listed(values, name)
    for value in listed:
        if not is_whole(value) or not -(2**63) <= value.__index__() < 2**63:
            raise InputError(f"{name}: {value!r} given; whole numbers of at most 64 bits are accepted")
    return [value.__index__() for value in listed]
