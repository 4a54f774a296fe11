"""A model whose tokens are letters, so that tests can say which ones a window holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class LetterTokenizer:
    """One id for each character: its place in the alphabet; anything else is 0."""

    bos_token_id: int | None = None

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, Any]:
        assert not add_special_tokens
        return {"input_ids": [ord(letter) - 96 if letter.isalpha() else 0 for letter in text]}


class TokenizerWithStart(LetterTokenizer):
    bos_token_id = 27


@dataclass
class LetterModel:
    """As much of a Decoder as texts are made for."""

    name: str = "letters"
    vocab_size: int = 28
    max_positions: int = 128
    tokenizer_source: object = "letters"
    letters: type[LetterTokenizer] = LetterTokenizer

    def tokenizer(self) -> LetterTokenizer:
        return self.letters()
