"""Runs of words that two texts share."""

from __future__ import annotations

import re
from collections.abc import Iterator


def word_runs(text: str, length: int) -> Iterator[int]:
    """A hash of every run of `length` words, without regard to case and punctuation."""
    words = re.findall(r"\w+", text.lower())
    return (hash(tuple(words[place : place + length])) for place in range(len(words) - length + 1))
