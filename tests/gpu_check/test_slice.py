"""The slice of a real model that the check can be given."""

from __future__ import annotations

import pytest
import torch

import pyprune
from bench.gpu_check.slice import BLOCKS, VOCABULARY, cut
from pyprune.errors import InputError
from pyprune.pruning.budget import UniformSizes

TINY = "shape:tiny"


def test_a_slice_is_a_model_of_its_own_that_transformers_reads_alike(slice_folder):
    from transformers import AutoModelForCausalLM

    ours = pyprune.load(slice_folder)
    assert (len(ours.blocks), ours.vocab_size, ours.dtype, ours.eos_token_ids()) == (2, 200, torch.bfloat16, ())
    theirs = AutoModelForCausalLM.from_pretrained(slice_folder, dtype=torch.float32)
    ids = torch.arange(12).view(2, 6)
    with torch.inference_mode():
        expected = theirs(ids).logits[:, -1]
    result = pyprune.Engine(ours.to(torch.float32), 2, 8).prefill(ids)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_a_slice_larger_than_the_model_is_refused():
    with pytest.raises(InputError, match="at most 4 and 257"):
        cut(pyprune.load(TINY), blocks=5, vocabulary=200)


def test_the_slice_of_the_demonstration_model_stays_under_50_megabytes():
    sizes = UniformSizes.llama(
        blocks=BLOCKS, hidden=576, heads=9, kv_groups=3, head_dim=64, width=1536, vocab=VOCABULARY, tied=True
    )
    assert 2 * sizes.parameters < 50e6
