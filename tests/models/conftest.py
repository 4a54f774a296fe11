"""Small models with nothing degenerate in them: every tensor random, norms not one, biases not zero, sizes odd."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_samples import GGUF_SIZES, gguf_tensors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from bench.peers.llama_cpp import LlamaCpp, library
from pyprune.models.gguf_file import GGUFFile
from tests import seeds


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """No test may reach for the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def _randomise(model, dtype):
    generator = seeds.generator(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.5, generator=generator)
            if name.endswith("norm.weight"):
                parameter.add_(1)
    return model.to(dtype).eval()


SIZES = {
    "hidden_size": 48,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 128,
}


@pytest.fixture
def llama() -> Callable[..., LlamaForCausalLM]:
    """Make a small random LlamaForCausalLM: three query heads a KV head, odd FFN width and vocabulary."""

    def make(dtype=torch.float32, **changes):
        config = LlamaConfig(**{**SIZES, **changes})
        config.dtype = dtype
        return _randomise(LlamaForCausalLM(config), dtype)

    return make


@pytest.fixture
def mistral() -> Callable[..., MistralForCausalLM]:
    """Make a small random MistralForCausalLM whose 3 heads of 16 do not divide its hidden size of 64."""

    def make(dtype=torch.float32, **changes):
        sizes = {**SIZES, "hidden_size": 64, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16}
        config = MistralConfig(**{**sizes, "sliding_window": None, **changes})
        return _randomise(MistralForCausalLM(config), dtype)

    return make


@pytest.fixture
def random_model() -> Callable[..., PreTrainedModel]:
    """Make a small random model of the family that `model_type` names: three query heads a KV head of 10."""

    def make(model_type, dtype=torch.float32, **changes):
        config = AutoConfig.for_model(model_type, **{**SIZES, "head_dim": 10, **changes})
        config.dtype = dtype
        return _randomise(AutoModelForCausalLM.from_config(config), dtype)

    return make


@pytest.fixture
def saved(tmp_path, llama) -> Callable[..., Path]:
    """Save a small Llama with transformers; the directory."""

    def save(model=None, **changes):
        directory = tmp_path / "original"
        (model or llama(**changes)).save_pretrained(directory)
        return directory

    return save


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])


@pytest.fixture
def write_gguf(tmp_path) -> Callable[..., Path]:
    """Write a small model as GGUF: matrices in `kind`, norms in F32. `raw` gives ready-made bytes for matrices, `more`
    adds metadata to the writer."""
    import gguf

    def write(
        kind="F32", *, architecture="llama", sizes=GGUF_SIZES, tensors=None, metadata=None, raw=None, name="m",
        more=lambda writer: None,
    ):  # fmt: skip
        path = tmp_path / f"{name}.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_name("random")
        writer.add_context_length(256)
        writer.add_embedding_length(sizes["hidden"])
        writer.add_block_count(sizes["blocks"])
        writer.add_feed_forward_length(sizes["ffn"])
        writer.add_head_count(sizes["heads"])
        writer.add_head_count_kv(sizes["kv_heads"])
        writer.add_vocab_size(sizes["vocab"])
        defaults = {"add_layer_norm_rms_eps": 1e-5, "add_rope_freq_base": 12345.0}
        for add, value in {**defaults, **(metadata or {})}.items():
            getattr(writer, add)(value)
        more(writer)
        qtype = gguf.GGMLQuantizationType[kind]
        for tensor_name, values in (gguf_tensors(sizes) if tensors is None else tensors).items():
            if values.ndim == 1:
                writer.add_tensor(tensor_name, values)
            elif raw is not None:
                data = raw(values.shape, qtype)
                writer.add_tensor(tensor_name, data, raw_dtype=qtype)
            elif kind in ("F32", "F16"):
                writer.add_tensor(tensor_name, values.astype(np.float32 if kind == "F32" else np.float16))
            else:
                writer.add_tensor(tensor_name, gguf.quantize(values, qtype), raw_dtype=qtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def package_environment() -> dict[str, str]:
    """Environment for a fresh Python that imports the same pyprune."""
    import pyprune.models

    root = Path(pyprune.models.__file__).parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture
def written(tmp_path):
    """Write a decoder; the open file."""

    def write(decoder, **options):
        decoder.save_gguf(tmp_path / "model.gguf", **options)
        return GGUFFile(tmp_path / "model.gguf")

    return write


@pytest.fixture
def llama_cpp():
    if reason := LlamaCpp(None).absent_reason():
        pytest.skip(reason)
    return library()
