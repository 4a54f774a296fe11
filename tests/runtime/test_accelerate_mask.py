"""Which attention masks are understood as causal attention with left padding, and which are left to torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyprune.runtime.huggingface.fallback import causal


def rows(batch: int, tokens: int, start: int) -> Tensor:
    return torch.arange(start, start + tokens).expand(batch, tokens).contiguous()


def masked(first: list[int], tokens: int, start: int, length: int) -> Tensor:
    """bool [B, 1, T, length]: query t of sequence b sees rows first[b] .. start + t."""
    seen = [[[f <= row <= start + t for row in range(length)] for t in range(tokens)] for f in first]
    return torch.tensor(seen).unsqueeze(1)


def additive(seen: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.where(seen, torch.zeros((), dtype=dtype), torch.finfo(dtype).min)


@pytest.mark.parametrize("form", [lambda m: m, additive, lambda m: additive(m, torch.bfloat16), lambda m: m.log()])
@pytest.mark.parametrize(("tokens", "start", "length"), [(1, 6, 7), (3, 4, 7), (1, 6, 12), (4, 4, 12)])
def test_left_padding_is_read_back(form, tokens: int, start: int, length: int):
    mask = form(masked([0, 3, 4], tokens, start, length))
    found = causal(mask, rows(3, tokens, start), start, length, is_causal=True)
    assert found is not None
    assert found.first.tolist() == [0, 3, 4]
    assert found.first.dtype == torch.int64


def test_without_padding_there_is_no_first():
    assert causal(masked([0, 0], 2, 5, 9), rows(2, 2, 5), 5, 9, True).first is None


def test_one_mask_may_serve_a_batch():
    assert causal(masked([2], 2, 5, 9), rows(3, 2, 5), 5, 9, True).first.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("tokens", "start", "length", "is_causal", "understood"),
    [
        (4, 0, 4, True, True),  # a prompt
        (1, 6, 7, True, True),  # one token that sees everything
        (1, 6, 7, False, True),
        (4, 0, 9, True, True),  # a prompt in a static cache: torch is given the first rows alone
        (4, 0, 4, False, False),  # eager attention without a mask sees the future
        (4, 3, 7, True, False),  # sdpa would align its causal mask with the first row
        (1, 6, 9, True, False),  # everything is more than the rows up to its own
    ],
)
def test_no_mask_means_what_the_attention_function_makes_of_it(
    tokens: int, start: int, length: int, is_causal: bool, understood: bool
):
    assert (causal(None, rows(2, tokens, start), start, length, is_causal) is not None) == understood


def hole(mask: Tensor) -> Tensor:
    mask[1, 0, -1, 3] = False
    return mask


def future(mask: Tensor) -> Tensor:
    mask[0, 0, 0, -1] = True
    return mask


def blind(mask: Tensor) -> Tensor:
    mask[1, 0, 0] = False
    return mask


def past(mask: Tensor) -> Tensor:
    """The window of a later query begins later."""
    mask[:, 0, -1, :3] = False
    return mask


def weighed(mask: Tensor) -> Tensor:
    mask = additive(mask)
    mask[0, 0, 0, 1] = -0.5
    return mask


@pytest.mark.parametrize("change", [hole, future, blind, past, weighed])
def test_other_patterns_are_not(change):
    tokens, start, length = 3, 4, 8
    mask = masked([0, 2], tokens, start, length)
    assert causal(mask.clone(), rows(2, tokens, start), start, length, True) is not None
    assert causal(change(mask), rows(2, tokens, start), start, length, True) is None


@pytest.mark.parametrize(
    "mask",
    [
        masked([0], 3, 4, 8).expand(3, 1, 3, 8),
        masked([0, 0], 3, 4, 8).expand(2, 2, 3, 8),
        masked([0, 0], 3, 4, 7),
        masked([0, 0], 2, 4, 8),
        torch.ones(2, 8, dtype=torch.bool),
        object(),
    ],
    ids=["batch", "heads", "rows", "tokens", "2-D", "no tensor"],
)
def test_other_shapes_are_not(mask: object):
    assert causal(mask, rows(2, 3, 4), 4, 8, True) is None


def test_a_query_that_is_padding_itself_is_not():
    """transformers lets it see nothing, `decode_attention` lets it see itself."""
    assert causal(masked([0, 5], 3, 4, 8), rows(2, 3, 4), 4, 8, True) is None
