"""Tests of what the compiled CPU library alone does."""

from __future__ import annotations

import os

import pytest

LEFT_OUT = os.environ.get("PYPRUNE_NATIVE") == "0"
FORCED = ("PYPRUNE_ISA",)  # what only the library takes


def without_library() -> dict[str, str]:
    """This environment, with the library switched off and nothing forced."""
    return {name: value for name, value in os.environ.items() if name not in FORCED} | {"PYPRUNE_NATIVE": "0"}


needs_library = pytest.mark.skipif(LEFT_OUT, reason="PYPRUNE_NATIVE=0: the test is of the CPU library's kernels")
