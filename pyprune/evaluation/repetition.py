"""How much a generated text repeats itself."""

from __future__ import annotations

import math
from collections.abc import Sequence


def repeated_share(texts: Sequence[Sequence[int]], length: int = 4) -> float | None:
    """1 - distinct / total, of the n-grams of `length` tokens of all texts; None where no text is that long.

    A gram counts as repeated only within its own text: texts on one subject may share words.
    """
    counts = _counts(texts, length)
    total = sum(grams for _, grams in counts)
    return sum(repeated for repeated, _ in counts) / total if total else None


def repeated_share_stderr(texts: Sequence[Sequence[int]], length: int = 4) -> float | None:
    """The standard error of `repeated_share` from how the texts differ, as of a ratio of two sums over them (Cochran
    1977, chapter 6); None of fewer than two texts with such grams."""
    counts = [(repeated, grams) for repeated, grams in _counts(texts, length) if grams]
    if len(counts) < 2:
        return None
    total = sum(grams for _, grams in counts)
    share = sum(repeated for repeated, _ in counts) / total
    squares = sum((repeated - share * grams) ** 2 for repeated, grams in counts)
    return math.sqrt(len(counts) / (len(counts) - 1) * squares) / total


def _counts(texts: Sequence[Sequence[int]], length: int) -> list[tuple[int, int]]:
    """Of each text (repeated grams, grams in all)."""
    counts = []
    for text in texts:
        grams = [tuple(text[i : i + length]) for i in range(len(text) - length + 1)]
        counts.append((len(grams) - len(set(grams)), len(grams)))
    return counts
