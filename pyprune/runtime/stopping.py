"""When each sequence of a batch ends: its number of new tokens, and the tokens that end it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.runtime.sampling_params import SamplingParams


def token_limits(params: SamplingParams, batch: int) -> list[int]:
    """The most new tokens of each sequence. InputError for as many numbers as there are not sequences."""
    limits = params.max_new_tokens
    if isinstance(limits, int):
        return [limits] * batch
    each = list(limits)
    if len(each) != batch:
        raise InputError(
            f"max_new_tokens: {len(each)} numbers given; one, or {batch} (one for each sequence) are accepted"
        )
    return each


def stop_ids(params: SamplingParams, batch: int, device: torch.device) -> Tensor | None:
    """The ids that end each sequence, `[1 or B, ids]` filled up with -1; None without any."""
    ids = params.eos_token_id
    if ids is None:
        return None
    values: list[int | Iterable[int]] = [ids] if isinstance(ids, int) else list(ids)
    rows = [list(value) for value in values if not isinstance(value, int)]
    if rows:
        if len(rows) != batch:
            raise InputError(
                f"eos_token_id: lists for {len(rows)} sequences given; {batch}, one for each sequence, are accepted"
            )
    else:
        rows = [[value for value in values if isinstance(value, int)]]
    longest = max(len(row) for row in rows)
    if not longest:
        return None
    return torch.tensor([row + [-1] * (longest - len(row)) for row in rows], device=device)
