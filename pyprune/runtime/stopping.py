"""When each sequence of a batch ends: its number of new tokens, and the tokens that end it."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.runtime.sampling_params import SamplingParams


def token_limits(params: SamplingParams, batch: int) -> list[int]:
    """The most new tokens of each sequence. InputError for as many numbers as there are not sequences."""
    limits = params.max_new_tokens
    if isinstance(limits, int):
        return [limits] * batch
    limits = list(limits)
    if len(limits) != batch:
        raise InputError(
            f"max_new_tokens: {len(limits)} numbers given; one, or {batch} (one for each sequence) are accepted"
        )
    return limits


def stop_ids(params: SamplingParams, batch: int, device: torch.device) -> Tensor | None:
    """The ids that end each sequence, `[1 or B, ids]` filled up with -1; None without any."""
    ids = params.eos_token_id
    if ids is None:
        return None
    ids = [ids] if isinstance(ids, int) else list(ids)
    if ids and not isinstance(ids[0], int):
        rows = [list(row) for row in ids]
        if len(rows) != batch:
            raise InputError(
                f"eos_token_id: lists for {len(rows)} sequences given; {batch}, one for each sequence, are accepted"
            )
    else:
        rows = [ids]
    longest = max(len(row) for row in rows)
    if not longest:
        return None
    return torch.tensor([row + [-1] * (longest - len(row)) for row in rows], device=device)
