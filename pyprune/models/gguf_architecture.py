"""Architectures of llama.cpp, by what their files can hold."""

from __future__ import annotations

from dataclasses import dataclass

RAGGED = "deci"
"""llama.cpp's architecture of Llama's blocks in sizes of their own, made for Nemotron's pruned models."""


@dataclass(frozen=True)
class Architecture:
    """What one of llama.cpp's architectures can hold (llama.cpp's src/models/NAME.cpp)."""

    name: str
    biases: frozenset[str]
    interleaved: bool = False
    """Whether rows of q and k that rotate together are neighbours."""
    qk_norm: bool = False
    whole_heads: bool = False
    """Whether the heads must make up the hidden size."""
    divisors: bool = False
    """Whether frequencies may be divided one by one."""


QKV_BIASES = frozenset(("q", "k", "v"))
ALL_BIASES = frozenset(("q", "k", "v", "o", "gate", "up", "down"))
LLAMA = Architecture("llama", ALL_BIASES, interleaved=True, divisors=True)
DECI = Architecture(RAGGED, ALL_BIASES, interleaved=True, divisors=True)
"""What any family of Llama's blocks can be written as, where its own architecture does not do."""
