"""A small recipe and its undisturbed run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyprune.study.recipes.run import recipe
from tests.study.recipes.small import SMALL


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "small.toml"
    file.write_text(SMALL)
    return file


@pytest.fixture(scope="session")
def finished(small, tmp_path_factory):
    """An undisturbed run: its results and its directory."""
    out = tmp_path_factory.mktemp("finished") / "out"
    return recipe(small, "shape:tiny", out=out).results, out
