"""Fixtures for all rooms: a tiny model and the real one, each loaded once."""

from __future__ import annotations

import os

import pytest
import torch

import pyprune
from pyprune.models.decoder import Decoder

TINY = "shape:hidden=48,blocks=5,heads=6,kv_heads=2,head_dim=10,ffn=71,vocab=131"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers in any order and alone; PYPRUNE_TEST_SEED draws others, to look for luck."""
    torch.manual_seed(int(os.environ.get("PYPRUNE_TEST_SEED", "0")))


@pytest.fixture(scope="session")
def tiny() -> Decoder:
    """A random Llama of odd sizes in float32: 5 blocks, GQA 6/2, head_dim 10, FFN 71, 131 tokens, untied head."""
    return pyprune.load(TINY)


@pytest.fixture(scope="session")
def smollm2() -> Decoder:
    """SmolLM2-135M-Instruct in float32."""
    return pyprune.load("smollm2-135m")
