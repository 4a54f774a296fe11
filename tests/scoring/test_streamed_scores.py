"""A model larger than memory is scored: its blocks are read one at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from pyprune import Pruning, load, perplexity, score
from tests import seeds
from tests.fresh import run_fresh

LARGE = "shape:hidden=256,blocks=30,heads=4,kv_heads=4,head_dim=64,ffn=1536,vocab=300"
SMALL = "shape:hidden=32,blocks=6,heads=4,kv_heads=4,head_dim=8,ffn=48,vocab=300"
REMOVED = [[2], [9, 10], [20], [28]]
ROOT = Path(__file__).resolve().parents[2]
CONFINED = """
import ctypes, json, resource, sys
from pathlib import Path

import torch

from pyprune import Pruning, load, score

# malloc gives freed tensors back at once, as it does those over 32 MiB of a real model: the limit then counts what the
# scorer holds, and not what malloc keeps.
assert ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD
torch.set_num_threads(1)
directory, values, how = sys.argv[1:]
ids, removed = json.loads(values)
samples = torch.tensor(ids)
warm = load("shape:hidden=32,blocks=1,heads=1,kv_heads=1,head_dim=32,ffn=64,vocab=300")
score(warm, samples)  # from here on libraries and threads are there
len(load(directory, stream=True).blocks[0:1])
sizes = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
limit = int(sizes["VmData"].split()[0]) * 1024 + (54 << 20)
# 16 MiB of it are left to what no plan counts: code that libraries compile, and the stacks and arenas of threads.
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
model, candidates = load(directory, stream=how == "stream"), [Pruning(blocks=blocks) for blocks in removed]
print(json.dumps(score(model, samples, candidates=candidates, memory=38 << 20).values))
"""


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
    """30 blocks of 5.8 MB, under a hard limit (RLIMIT_DATA) of 54 MiB beyond what the process had before."""
    checkpoint = tmp_path / "model"
    load(LARGE).save(checkpoint)
    assert (checkpoint / "model.safetensors").stat().st_size > 3 * (54 << 20)

    def confined(how: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return run_fresh(CONFINED, environment, checkpoint, json.dumps([samples.tolist(), REMOVED]), how)

    candidates = [Pruning(blocks=blocks) for blocks in REMOVED]
    expected = score(load(checkpoint), samples, candidates=candidates).values
    assert json.loads(confined("stream")) == pytest.approx(expected, rel=1e-6)
    # The limit is real: the whole model does not load under it.
    with pytest.raises(AssertionError, match=r"allocate memory|bad_alloc|MemoryError"):
        confined("whole")
