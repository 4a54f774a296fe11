"""Loading a Qwen2 in Q4_K_M, the mix that most quantised files are in: its values, its memory, and what is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import gguf
import numpy as np
import pytest
import torch
from gguf_random import random_blocks, write_random_qwen2
from gguf_samples import GGUF_SIZES, gguf_tensors, rotary_halves

from pyprune.errors import SlowTypeWarning
from pyprune.models import load
from pyprune.models.gguf_file import GGUFFile
from pyprune.models.names import gguf_name
from tests import seeds
from tests.library import needs_library, without_library

SMALL = {"hidden": 512, "ffn": 1024, "blocks": 6, "heads": 4, "kv_heads": 2, "head_dim": 128, "vocab": 3001}
MIDDLE = {"hidden": 1024, "ffn": 4096, "blocks": 6, "heads": 8, "kv_heads": 2, "head_dim": 128, "vocab": 60000}
SEED = seeds.seed()


def by_the_package(path) -> dict[str, torch.Tensor]:
    return {
        tensor.name: torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in gguf.GGUFReader(path).tensors
    }


def test_a_mixed_file_has_the_packages_values_rounded_once(tmp_path):
    path = tmp_path / "m.gguf"
    write_random_qwen2(path, SMALL, SEED)
    expected = by_the_package(path)
    assert {tensor.type.name for tensor in GGUFFile(path).tensors.values()} == {"F32", "Q4_K", "Q6_K"}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for part, tensor in load(path, dtype=dtype).tensors():
            assert torch.equal(tensor, expected[gguf_name(part)].to(dtype)), part


@pytest.mark.real_model
def test_the_demonstration_model_has_the_packages_values_rounded_once(smollm2):
    """In float32 test_smollm2.py compares them with those that transformers takes from the package."""
    for dtype in (torch.bfloat16, torch.float16):
        for (part, tensor), (_, whole) in zip(
            load("smollm2-135m", dtype=dtype).tensors(), smollm2.tensors(), strict=True
        ):
            assert torch.equal(tensor, whole.to(dtype)), (dtype, part)


def test_a_quantised_bias_of_permuted_rows(write_gguf):
    """Its blocks run across heads: the one case in which rows cannot be written where they belong."""
    tensors = gguf_tensors(GGUF_SIZES, biases="q k")
    bias = random_blocks("Q4_0", 1, 64, np.random.default_rng(SEED)).ravel()
    del tensors["blk.0.attn_q.bias"]

    path = write_gguf(
        tensors=tensors,
        more=lambda writer: writer.add_tensor("blk.0.attn_q.bias", bias, raw_dtype=gguf.GGMLQuantizationType.Q4_0),
    )
    expected = torch.from_numpy(gguf.dequantize(bias, gguf.GGMLQuantizationType.Q4_0).copy())
    assert torch.equal(load(path).blocks[0].mha.q.bias, rotary_halves(expected, 4))


@needs_library
def test_what_the_library_does_not_dequantise_is_said_once(write_gguf):
    def raw(shape, kind):
        return random_blocks(kind.name, *shape, np.random.default_rng(1))

    sizes = {**GGUF_SIZES, "hidden": 256, "ffn": 512}
    path = write_gguf("TQ2_0", sizes=sizes, tensors=gguf_tensors(sizes), raw=raw)
    with pytest.warns(SlowTypeWarning, match=r"m\.gguf: TQ2_0: dequantised by the gguf package") as told:
        load(path)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(write_gguf("Q8_0", name="quick"))


@pytest.mark.slow
def test_without_the_library_the_package_dequantises_the_same_values(write_gguf):
    path = write_gguf("Q5_1", tensors=gguf_tensors(GGUF_SIZES))
    code = (
        "import sys, warnings, torch, pyprune\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        "    decoder = pyprune.load(sys.argv[1], dtype='bf16')\n"
        "print([str(w.message).rpartition(': ')[2] for w in told])\n"
        "torch.save(dict(decoder.tensors()), sys.argv[2])\n"
    )
    saved = path.with_suffix(".pt")
    done = subprocess.run(
        [sys.executable, "-c", code, path, saved], env=without_library(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['the C++ library is not in use']"
    other = torch.load(saved)
    assert all(torch.equal(tensor, other[part]) for part, tensor in load(path, dtype="bf16").tensors())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_a_load_takes_little_more_memory_than_its_weights(tmp_path):
    """Pages of the file included, which are a third of the weights here: they are let go as they have been read."""
    path = tmp_path / "m.gguf"
    parameters = write_random_qwen2(path, MIDDLE, SEED)
    code = (
        "import json, sys, pyprune, gguf\n"
        "from pathlib import Path\n"
        "def resident(field):\n"
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))\n"
        "pyprune.load(sys.argv[2], dtype='bf16')\n"  # imports and threads
        "before = resident('VmRSS')\n"
        "Path('/proc/self/clear_refs').write_text('5')\n"
        "decoder = pyprune.load(sys.argv[1], dtype='bf16')\n"
        "print(json.dumps([resident('VmHWM') - before, sum(t.nbytes for _, t in decoder.tensors())]))\n"
    )
    small = tmp_path / "small.gguf"
    write_random_qwen2(small, SMALL, SEED)
    done = subprocess.run(
        [sys.executable, "-c", code, path, small], env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    taken, weights = json.loads(done.stdout)
    assert weights == 2 * parameters
    assert taken <= 1.15 * weights
