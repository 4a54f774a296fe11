"""The seeds of everything random in the tests: PYPRUNE_TEST_SEED draws other numbers everywhere, to look for luck."""

from __future__ import annotations

import os

import torch


def seed(number: int = 0) -> int:
    """The seed that a test calls `number`."""
    return number + 1000 * int(os.environ.get("PYPRUNE_TEST_SEED", "0"))


def generator(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed(number))
