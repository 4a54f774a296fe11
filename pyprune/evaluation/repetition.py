"""How much a generated text repeats itself."""

from __future__ import annotations

from collections.abc import Sequence


def repeated_share(texts: Sequence[Sequence[int]], length: int = 4) -> float | None:
    """1 - distinct / total, of the n-grams of `length` tokens of all texts; None where no text is that long.

    A gram counts as repeated only within its own text: texts on one subject may share words.
    """
    grams = [[tuple(text[i : i + length]) for i in range(len(text) - length + 1)] for text in texts]
    total = sum(map(len, grams))
    return 1 - sum(len(set(of_text)) for of_text in grams) / total if total else None
