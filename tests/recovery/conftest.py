"""The small models and windows that repairs are tested on."""

from __future__ import annotations

import pytest
import torch
from definitions import FAMILIES, SIZES

import pyprune
from tests import seeds


@pytest.fixture(params=FAMILIES)
def original(request):
    return pyprune.load(FAMILIES[request.param], dtype=torch.float32)


@pytest.fixture
def llama():
    return pyprune.load(SIZES, dtype=torch.float32)


@pytest.fixture
def ids():
    return torch.randint(0, 53, (24, 17), generator=seeds.generator(3))
