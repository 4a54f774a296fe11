"""Prompts as text, and the text of what continues them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyprune.models.decoder import Decoder


def padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, each `[B, T]`, of prompts padded on the right."""
    longest = max(map(len, prompts))
    ids = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
    mask = [[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def end_ids(decoder: Decoder, tokenizer: Any) -> list[int]:
    """The ids that end a text: those that the model names, and its tokenizer's; none without a tokenizer."""
    if tokenizer is None:
        return []
    tokenizer_ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return sorted({*decoder.eos_token_ids(), *tokenizer_ids})


def until_end(new: list[int], ends: Sequence[int]) -> list[int]:
    """New ids up to the first that ends the text, without the padding behind it."""
    first = next((i for i, token in enumerate(new) if token in ends), len(new))
    return new[: first + 1]


def continuation(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The new tokens' text. Decoded together with the prompt: some tokenizers drop the space of a first word."""
    prompt_text = tokenizer.decode(list(prompt), skip_special_tokens=True)
    text = tokenizer.decode([*prompt, *new], skip_special_tokens=True)
    if text.startswith(prompt_text):
        return text[len(prompt_text) :]
    return tokenizer.decode(list(new), skip_special_tokens=True)
