"""Writing decoders as GGUF files, llama.cpp's format, with the `gguf` package.

A model whose blocks are alike keeps its own architecture. Others are written as `deci`, llama.cpp's Llama with sizes
for each block. Two things it cannot leave out, and gets as zeros that add nothing: an FFN (of width 1: a block of width
0 loses its attention too, and as the last one it aborts), and the attention of block 0 (one head: llama.cpp takes sizes
of the whole model from there).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.files import whole_file
from pyprune.models.blocks import FFN, MHA, Block, Linear, named_tensors
from pyprune.models.families import family_of
from pyprune.models.gguf_architecture import DECI, RAGGED, Architecture
from pyprune.models.gguf_file import GGUFFile, import_gguf
from pyprune.models.gguf_rope import DIVISORS, rope_metadata, rotary_neighbours
from pyprune.models.gguf_tokenizer import NO_TOKENIZER, Field, add_field, converted_fields, copied_fields
from pyprune.models.names import gguf_name
from pyprune.models.protocol import DecoderLike
from pyprune.models.sizes import BlockSizes, uniform_sizes
from pyprune.models.tensors import as_dtype, is_finite
from pyprune.models.tokenizers import load_tokenizer

_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_FILE_TYPES = {torch.float32: "ALL_F32", torch.float16: "MOSTLY_F16", torch.bfloat16: "MOSTLY_BF16"}


def save_gguf(
    decoder: DecoderLike, path: str | os.PathLike[str], dtype: torch.dtype | str | None = None, tokenizer: bool = True
) -> None:
    """Write `decoder` as one GGUF file, whole or not at all; an old file is replaced.

    Matrices in `dtype` (None: the decoder's own), norms and biases in float32, as llama.cpp wants them; the tokenizer's
    fields too, unless `tokenizer` is False. InputError before anything is written for what llama.cpp cannot express,
    naming it; and for a value that float16 cannot hold.
    """
    decoder.require_weights()
    gguf = import_gguf(path)
    stored = decoder.dtype if dtype is None else as_dtype(dtype)
    architecture, rope, divisors = chosen_architecture(decoder)
    fields = _tokenizer_fields(decoder) if tokenizer else NO_TOKENIZER
    blocks = decoder.blocks if architecture.name != RAGGED else _with_stand_ins(decoder)
    with whole_file(path) as scratch:
        writer = gguf.GGUFWriter(scratch, architecture.name)
        try:
            _add_metadata(gguf, writer, decoder, blocks, architecture, stored)
            for key, value in rope.items():
                add_field(writer, Field(f"{architecture.name}.rope.{key}", value))
            for field in fields:
                add_field(writer, field)
            names = [] if divisors is None else [(DIVISORS, divisors)]
            tensors = [*names, *_tensors(decoder, blocks)]
            for name, tensor in tensors:
                kind = stored if tensor.ndim > 1 else torch.float32
                size = tensor.numel() * kind.itemsize
                raw = gguf.GGMLQuantizationType[_TYPES[kind]]
                writer.add_tensor_info(name, list(tensor.shape), np.dtype(np.float32), size, raw_dtype=raw)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            heads = _interleaved_heads(blocks) if architecture.interleaved else {}
            for name, tensor in tensors:  # one at a time, so that a change of dtype or order costs one tensor's memory
                writer.write_tensor_data(_bytes(tensor, name, heads.get(name.rpartition(".")[0]), stored))
        finally:
            writer.close()


def chosen_architecture(decoder: DecoderLike) -> tuple[Architecture, dict[str, Any], Tensor | None]:
    """The architecture that holds the decoder, its RoPE's metadata and divisors.

    The family's own where it can, else `deci`; InputError with the reasons where neither can.
    """
    family = family_of(decoder.config["model_type"], decoder.name)
    if decoder.head.bias is not None:
        raise InputError(f"{decoder.name}: a bias on the LM head cannot be written as GGUF")
    if not decoder.blocks:
        raise InputError(f"{decoder.name}: a model without blocks cannot be written as GGUF")
    for block in decoder.blocks:
        if block.mha is not None and 0 < block.mha.window < decoder.max_positions:
            raise InputError(
                f"{decoder.name}: block {block.index} attends within a window of {block.mha.window} of"
                f" {decoder.max_positions} positions; llama.cpp's architectures of this family have none"
            )
    try:
        rope, divisors = rope_metadata(decoder)
    except InputError as error:
        raise InputError(f"{decoder.name}: cannot be written as GGUF: {error}") from None
    reasons = []
    for architecture in filter(None, (family.gguf_architecture, DECI)):
        reason = _refusal(architecture, decoder, divisors is not None)
        if reason is None:
            return architecture, rope, divisors
        reasons.append(f"not as {architecture.name}: {reason}")
    raise InputError(f"{decoder.name}: cannot be written as GGUF: {'; '.join(reasons)}")


def _tokenizer_fields(decoder: DecoderLike) -> Sequence[Field]:
    """The fields of the decoder's tokenizer: those of a GGUF file as they are; `NO_TOKENIZER` where it has none."""
    source = decoder.tokenizer_source
    if source is None:
        return NO_TOKENIZER
    if source.gguf_file is not None:
        return copied_fields(GGUFFile(Path(source.path) / source.gguf_file))
    return converted_fields(load_tokenizer(source, decoder.name), decoder.name, decoder.vocab_size)


def _refusal(architecture: Architecture, decoder: DecoderLike, divided: bool) -> str | None:
    """Why the architecture cannot hold the decoder, None where it can."""
    if architecture.name != RAGGED:
        try:
            uniform_sizes(decoder)
        except InputError as error:
            return str(error).removeprefix(f"{decoder.name}: ")
    if divided and not architecture.divisors:
        return f"RoPE of kind {decoder.rope.kind}, for which it has no frequency divisors"
    sizes = {}
    for block in decoder.blocks:
        size, where = BlockSizes.of(block), f"block {block.index}"
        if foreign := [name for name in size.biases() if name not in architecture.biases]:
            return f"{where} has biases on {' '.join(foreign)}"
        if size.heads and size.qk_norm != architecture.qk_norm:
            return f"{where} has {'' if size.qk_norm else 'no '}q/k-norm"
        if architecture.whole_heads and size.heads * size.head_dim != decoder.hidden_size:
            return f"{size.heads} heads of {size.head_dim} are not the hidden size {decoder.hidden_size}"
        if size.heads:
            sizes[size.head_dim] = where
    if len(sizes) > 1:
        return f"heads of {len(sizes)} sizes ({', '.join(f'{size} in {where}' for size, where in sizes.items())})"
    return None


def _with_stand_ins(decoder: DecoderLike) -> tuple[Block, ...]:
    """The blocks, with zeros for the sublayers that `deci` cannot leave out."""
    hidden, like = decoder.hidden_size, decoder.embedding
    norm = like.new_ones(hidden)

    def zeros(out: int, inner: int) -> Linear:
        return Linear(like.new_zeros(out, inner))

    head_dim = next((block.mha.head_dim for block in decoder.blocks if block.mha is not None), None)
    size = head_dim or int(decoder.config["head_dim"])
    attention = MHA(
        norm, zeros(size, hidden), zeros(size, hidden), zeros(size, hidden), zeros(hidden, size), 1, 1, size
    )  # fmt: skip
    ffn = FFN(norm, zeros(1, hidden), zeros(1, hidden), zeros(hidden, 1))
    return tuple(
        replace(block, mha=attention if block.mha is None and place == 0 else block.mha, ffn=block.ffn or ffn)
        for place, block in enumerate(decoder.blocks)
    )


def _add_metadata(
    gguf: Any,
    writer: Any,
    decoder: DecoderLike,
    blocks: Sequence[Block],
    architecture: Architecture,
    stored: torch.dtype,
) -> None:
    sizes = [BlockSizes.of(block) for block in blocks]
    counts = [[size.heads for size in sizes], [size.kv_heads for size in sizes], [size.width for size in sizes]]
    heads, kv_heads, widths = counts if architecture.name == RAGGED else [count[0] for count in counts]
    head_dim = next(size.head_dim for size in sizes if size.heads)
    writer.add_name(decoder.name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[stored]])
    writer.add_context_length(decoder.max_positions)
    writer.add_embedding_length(decoder.hidden_size)
    writer.add_block_count(len(blocks))
    writer.add_feed_forward_length(widths)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(decoder.eps)
    writer.add_vocab_size(decoder.vocab_size)


def _tensors(decoder: DecoderLike, blocks: Sequence[Block]) -> Iterator[tuple[str, Tensor]]:
    for part, tensor in named_tensors(decoder.embedding, blocks, decoder.norm, decoder.head, decoder.tied):
        yield gguf_name(part), tensor


def _interleaved_heads(blocks: Sequence[Block]) -> dict[str, int]:
    """Heads of the projections whose rows change places, by llama.cpp's name without its last part."""
    heads = {}
    for place, block in enumerate(blocks):
        if block.mha is not None:
            heads[f"blk.{place}.attn_q"], heads[f"blk.{place}.attn_k"] = block.mha.heads, block.mha.kv_heads
    return heads


def _bytes(tensor: Tensor, name: str, heads: int | None, stored: torch.dtype) -> np.ndarray:
    """The tensor as it lies in the file. NumPy has no bfloat16: bytes, whose type is named apart, serve all three."""
    rows = tensor.detach().cpu()
    if heads is not None:
        rows = rotary_neighbours(rows, heads)
    kept = rows.to(stored if tensor.ndim > 1 else torch.float32)
    if kept.dtype == torch.float16 != tensor.dtype and not is_finite(kept):
        raise InputError(f"tensor {name} does not fit float16: a value would be infinite; use bf16 or f32")
    return kept.contiguous().view(torch.uint8).numpy()
