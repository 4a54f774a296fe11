"""Token ids and attention masks as users hand them in: what is accepted, and the form in which the rest works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError


@dataclass(frozen=True)
class Prompts:
    """Checked prompts: ids `[B, T]`, of which `[b, :lengths[b]]` is sequence b; what lies behind is never attended."""

    ids: Tensor
    lengths: list[int]


def prompts(input_ids: Tensor, attention_mask: Tensor | None, vocab_size: int) -> Prompts:
    """Prompts without their padding. InputError for ids outside the vocabulary, an empty prompt, a mask with a gap, and
    anything but tensors."""
    require_tensor("input_ids", input_ids, "integers [batch, tokens]")
    if attention_mask is not None:
        require_tensor("attention_mask", attention_mask, "1 and 0 in the shape of input_ids")
    ids, lengths = without_padding(input_ids, attention_mask)
    check_ids(ids, vocab_size)
    return Prompts(ids, lengths.tolist())


def require_tensor(name: str, value: Any, expected: str) -> None:
    if not isinstance(value, Tensor):
        raise InputError(f"{name}: a {type(value).__name__} given; a tensor, {expected}, is accepted")


def check_ids(ids: Tensor, vocab_size: int, name: str = "input_ids", form: str = "[batch, tokens]") -> None:
    """InputError when a token id lies outside the vocabulary, or when ids are not whole numbers of the form."""
    if ids.dim() != form.count(",") + 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputError(f"{name}: {ids.dtype} {list(ids.shape)} given; integers {form} are accepted")
    if not ids.numel():
        raise InputError(f"{name}: shape {list(ids.shape)} given; at least one token is expected")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise InputError(f"{name}: token id {low if low < 0 else high} given; 0 to {vocab_size - 1} are accepted")


def bool_mask(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The mask as bool, on the ids' device; InputError when its shape is not that of the ids, or for a value that is
    neither 1 nor 0 (of an additive mask, say)."""
    if attention_mask.shape != input_ids.shape:
        raise InputError(
            f"attention_mask: shape {list(attention_mask.shape)} given; "
            f"that of input_ids, {list(input_ids.shape)}, is accepted"
        )
    mask = attention_mask.to(input_ids.device)
    other = (mask != 0) & (mask != 1)
    if bool(other.any()):
        raise InputError(f"attention_mask: {mask[other][0].item()} given; 1 (a token) and 0 (padding) are accepted")
    return mask != 0


def without_padding(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Ids `[B, T]` moved to the left, so that sequence b is `[b, :lengths[b]]`, and the lengths `[B]`.

    What lies behind a sequence is never attended: causal attention hides it, and decoding overwrites it.
    """
    if input_ids.dim() != 2 or not input_ids.numel():
        raise InputError(f"input_ids: shape {list(input_ids.shape)} given; [batch, tokens], not empty, is accepted")
    batch, tokens = input_ids.shape
    if attention_mask is None:
        return input_ids, torch.full((batch,), tokens, device=input_ids.device)
    mask = bool_mask(input_ids, attention_mask)
    lengths = mask.sum(1)
    if int(lengths.min()) == 0:
        raise InputError(f"attention_mask: row {int(lengths.argmin())} is all padding; at least one token is expected")
    first = mask.int().argmax(1)
    column = torch.arange(tokens, device=input_ids.device)
    gapless = (column >= first[:, None]) & (column < (first + lengths)[:, None])
    if not bool((gapless == mask).all()):
        row = int((gapless != mask).any(1).int().argmax())
        raise InputError(f"attention_mask: row {row} has a gap; padding is accepted on the left and on the right only")
    moved = input_ids.gather(1, (column + first[:, None]).clamp(max=tokens - 1))
    moved = moved.masked_fill(column >= lengths[:, None], 0)  # any id of the vocabulary will do
    return moved[:, : int(lengths.max())].contiguous(), lengths
