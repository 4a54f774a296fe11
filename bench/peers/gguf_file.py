"""A Llama as a GGUF file in one float type, for llama.cpp: weights and sizes, no tokenizer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.models.families.family import gguf_name, uniform_sizes

_TYPES = {
    torch.float32: (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    torch.float16: (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    torch.bfloat16: (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}


def write_gguf(decoder: Decoder, path: Path) -> None:
    """Write the decoder's matrices bit for bit in its dtype, vectors in float32 as llama.cpp wants them.

    InputError unless it is a uniform Llama with plain RoPE.
    """
    sizes = uniform_sizes(decoder)
    if decoder.config["model_type"] != "llama" or decoder.rope.kind != "default" or sizes is None:
        raise InputError(f"{decoder.name}: a Llama with default RoPE is expected")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(_TYPES[decoder.dtype][1])
    writer.add_context_length(decoder.max_positions)
    writer.add_embedding_length(decoder.hidden_size)
    writer.add_block_count(len(decoder.blocks))
    writer.add_feed_forward_length(sizes.width)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_rope_dimension_count(sizes.head_dim)
    writer.add_rope_freq_base(decoder.config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(decoder.eps)
    writer.add_vocab_size(decoder.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    for part, tensor in decoder.tensors():
        if ".mha.q." in part:
            tensor = rotary_neighbours(tensor, sizes.heads)
        elif ".mha.k." in part:
            tensor = rotary_neighbours(tensor, sizes.kv_heads)
        stored = tensor if tensor.ndim > 1 else tensor.float()
        writer.add_tensor(gguf_name(part), _bytes(stored), raw_dtype=_TYPES[stored.dtype][0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rotary_neighbours(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k `[heads*head_dim, ...]` from Hugging Face's order (the two rows that rotate together are half a
    head apart) to llama.cpp's (they are neighbours)."""
    halves = rows.view(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _bytes(tensor: Tensor) -> np.ndarray:
    # NumPy has no bfloat16; bytes, with the type named apart, serve all three.
    return tensor.contiguous().view(torch.uint8).numpy()
