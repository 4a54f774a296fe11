"""A model larger than memory is scored: its blocks are read one at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyprune import load, perplexity, score
from tests import seeds

LARGE = "shape:hidden=256,blocks=30,heads=4,kv_heads=4,head_dim=64,ffn=1536,vocab=300"
SMALL = "shape:hidden=32,blocks=6,heads=4,kv_heads=4,head_dim=8,ffn=48,vocab=300"
CONFINED = Path(__file__).parent / "confined_scoring.py"


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    return torch.randint(0, 300, (2, 16), generator=seeds.generator(2))


def test_scores_are_those_of_the_model_in_memory(samples, tmp_path):
    load(SMALL).save(tmp_path / "model")
    streamed, whole = load(tmp_path / "model", stream=True), load(tmp_path / "model")
    assert score(streamed, samples).to_dict() == score(whole, samples).to_dict()
    assert perplexity(streamed, samples) == perplexity(whole, samples)
    assert score(streamed, samples, unit="mha+ffn").units == score(whole, samples, unit="mha+ffn").units


@pytest.mark.slow
def test_a_checkpoint_several_times_the_memory_limit_is_scored_under_it(samples, tmp_path):
    """30 blocks of 5.8 MB, under a hard limit (RLIMIT_DATA) of 48 MiB beyond what the process had before.

    malloc gives freed tensors back at once, as it does those over 32 MiB of a real model: the limit then counts what
    the scorer holds, and not what malloc keeps.
    """
    checkpoint = tmp_path / "model"
    load(LARGE).save(checkpoint)
    assert (checkpoint / "model.safetensors").stat().st_size > 3 * (48 << 20)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(CONFINED), str(checkpoint), json.dumps(samples.tolist()), *words]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    confined = run("stream")
    assert confined.returncode == 0, confined.stderr
    assert json.loads(confined.stdout) == pytest.approx(score(load(checkpoint), samples).values, rel=1e-6)
    # The limit is real: the whole model does not load under it.
    refused = run("whole")
    assert refused.returncode != 0
    assert "memory" in refused.stderr.lower()
