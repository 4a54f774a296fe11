"""A tiny checkpoint with weights, and the whole check once, dry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pyprune
from bench.gpu_check.parts import BUDGETS
from bench.gpu_check.runner import RESULT_FILE
from bench.gpu_check.settings import ROOT
from bench.gpu_check.slice import cut


@pytest.fixture(scope="session")
def slice_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slice of 2 blocks and 200 tokens."""
    shape = pyprune.load("shape:hidden=32,blocks=4,heads=4,kv_heads=2,head_dim=8,ffn=44,vocab=300,tied=1")
    folder = tmp_path_factory.mktemp("slice") / "model"
    cut(shape.to(torch.bfloat16), blocks=2, vocabulary=200).save(folder)
    return folder


@pytest.fixture(scope="session")
def dry_run(
    tmp_path_factory: pytest.TempPathFactory, slice_folder: Path
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any], Path]:
    """All scripts in one call on a CPU: the process, what it wrote, and where."""
    folder = tmp_path_factory.mktemp("check")
    command = [sys.executable, "-m", "bench.gpu_check", *BUDGETS, "--out", str(folder), "--dry-run", "--seed", "7"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--weights", str(slice_folder), "--limit", "1500"],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=1600,
    )  # fmt: skip
    return done, json.loads((folder / RESULT_FILE).read_text()), folder
