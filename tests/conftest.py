"""Fixtures for all rooms: a tiny model and the real one, each loaded once."""

from __future__ import annotations

import pytest

import pyprune
from pyprune.models.decoder import Decoder

TINY = "shape:hidden=48,blocks=5,heads=6,kv_heads=2,head_dim=10,ffn=71,vocab=131"


@pytest.fixture(scope="session")
def tiny() -> Decoder:
    """A random Llama of odd sizes in float32: 5 blocks, GQA 6/2, head_dim 10, FFN 71, 131 tokens, untied head."""
    return pyprune.load(TINY)


@pytest.fixture(scope="session")
def smollm2() -> Decoder:
    """SmolLM2-135M-Instruct in float32."""
    return pyprune.load("smollm2-135m")
