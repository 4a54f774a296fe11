"""A tiny checkpoint with weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pyprune
from bench.gpu_check.slice import cut


@pytest.fixture(scope="session")
def slice_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slice of 2 blocks and 200 tokens."""
    shape = pyprune.load("shape:hidden=32,blocks=4,heads=4,kv_heads=2,head_dim=8,ffn=44,vocab=300,tied=1")
    folder = tmp_path_factory.mktemp("slice") / "model"
    cut(shape.to(torch.bfloat16), blocks=2, vocabulary=200).save(folder)
    return folder
