"""GGUF files of random blocks: quickly written, of any size, their float16 scales small and finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import gguf
import numpy as np

HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,), "TQ1_0": (52,), "TQ2_0": (64,),
    "IQ2_XXS": (0,), "IQ3_S": (0,),
}  # fmt: skip
"""Where the float16 numbers of a block begin."""

QWEN2_1B5 = {"hidden": 1536, "ffn": 8960, "blocks": 28, "heads": 12, "kv_heads": 2, "head_dim": 128, "vocab": 151936}
"""The sizes of Qwen2 1.5B, whose embedding is its head too."""


def random_blocks(kind: str, rows: int, columns: int, random: np.random.Generator) -> np.ndarray:
    """`rows` x `columns` values of a quantised type, as bytes `[rows, bytes of a row]`."""
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = np.frombuffer(random.bytes(rows * columns // values * size), dtype=np.uint8).reshape(-1, size).copy()
    for place in HALVES[kind]:
        blocks[:, place + 1] = blocks[:, place + 1] & 0x87 | 0x08  # a sign, and an exponent from 2^-13 to 2^-12
    return blocks.reshape(rows, -1)


def _more_bits(block: int, blocks: int) -> bool:
    """The blocks whose V and down projections Q4_K_M keeps in Q6_K, as llama.cpp chooses them."""
    return block < blocks // 8 or block >= 7 * blocks // 8 or (block - blocks // 8) % 3 == 2


def _tensors(sizes: Mapping[str, int]) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and type of a tied Qwen2's tensors in Q4_K_M."""
    hidden, ffn, head_dim = sizes["hidden"], sizes["ffn"], sizes["head_dim"]
    q, kv = head_dim * sizes["heads"], head_dim * sizes["kv_heads"]
    yield "token_embd.weight", (sizes["vocab"], hidden), "Q6_K"
    for block in range(sizes["blocks"]):
        most = "Q6_K" if _more_bits(block, sizes["blocks"]) else "Q4_K"
        for name, rows, columns, kind in (
            ("attn_q", q, hidden, "Q4_K"), ("attn_k", kv, hidden, "Q4_K"), ("attn_v", kv, hidden, most),
            ("attn_output", hidden, q, "Q4_K"), ("ffn_gate", ffn, hidden, "Q4_K"), ("ffn_up", ffn, hidden, "Q4_K"),
            ("ffn_down", hidden, ffn, most),
        ):  # fmt: skip
            yield f"blk.{block}.{name}.weight", (rows, columns), kind
        for name, size in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
            yield f"blk.{block}.{name}.bias", (size,), "F32"
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{block}.{name}.weight", (hidden,), "F32"
    yield "output_norm.weight", (hidden,), "F32"


def write_random_qwen2(path: Path, sizes: Mapping[str, int], seed: int = 0) -> int:
    """Write a Qwen2 of these sizes as Q4_K_M quantises it; the number of its parameters."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(4096)
    writer.add_embedding_length(sizes["hidden"])
    writer.add_block_count(sizes["blocks"])
    writer.add_feed_forward_length(sizes["ffn"])
    writer.add_head_count(sizes["heads"])
    writer.add_head_count_kv(sizes["kv_heads"])
    writer.add_key_length(sizes["head_dim"])
    writer.add_value_length(sizes["head_dim"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(sizes["vocab"])
    tensors, random = list(_tensors(sizes)), np.random.default_rng(seed)
    for name, shape, kind in tensors:
        quantised = gguf.GGMLQuantizationType[kind]
        values, size = gguf.GGML_QUANT_SIZES[quantised]
        row = (*shape[:-1], shape[-1] // values * size)
        if kind == "F32":
            writer.add_tensor_info(name, shape, np.dtype(np.float32), prod(row))
        else:
            writer.add_tensor_info(name, row, np.dtype(np.uint8), prod(row), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, shape, kind in tensors:
        vector = kind == "F32"
        writer.write_tensor_data(
            random.standard_normal(shape).astype(np.float32) if vector else random_blocks(kind, *shape, random)
        )
    writer.close()
    return sum(prod(shape) for _, shape, _ in tensors)
