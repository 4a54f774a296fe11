"""Fixtures for all folders: a tiny model and the real one, each loaded once; and how the suite runs."""

from __future__ import annotations

import atexit
import gc

import pytest
import torch

import pyprune
from pyprune.models.decoder import Decoder
from tests import seeds
from tests.alone import Alone
from tests.full import Full
from tests.quick import Quick

TINY = "shape:hidden=48,blocks=5,heads=6,kv_heads=2,head_dim=10,ffn=71,vocab=131"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="those too that `make test-full` has the tools for")
    parser.addoption("--quick", action="store_true", help="three tests of each file, none of them slow")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Full(), "pyprune-full")
    config.pluginmanager.register(Quick(), "pyprune-quick")
    config.pluginmanager.register(Alone(), "pyprune-alone")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no worker waits at the end for one that has just begun with it."""
    items.sort(key=lambda item: item.path.parent.name != "triton")


def pytest_collection_finish() -> None:
    """What was imported and collected stays alive: collections of garbage need not look through it, which takes each
    of them half a second. At the end it is garbage like any other, which extensions want to see gone."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers in any order and alone; PYPRUNE_TEST_SEED draws others, to look for luck."""
    torch.manual_seed(seeds.seed())


@pytest.fixture(scope="session")
def tiny() -> Decoder:
    """A random Llama of odd sizes in float32: 5 blocks, GQA 6/2, head_dim 10, FFN 71, 131 tokens, untied head."""
    return pyprune.load(TINY)


@pytest.fixture(scope="session")
def smollm2() -> Decoder:
    """SmolLM2-135M-Instruct in float32."""
    return pyprune.load("smollm2-135m")
