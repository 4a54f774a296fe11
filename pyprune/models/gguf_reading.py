"""Reading decoders from GGUF files: configuration and sizes from the metadata, weights a tensor at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyprune.checks import is_int
from pyprune.errors import InputError
from pyprune.models.blocks import Linear
from pyprune.models.decoder import Decoder
from pyprune.models.families import Family, family_of_gguf
from pyprune.models.gguf_architecture import RAGGED
from pyprune.models.gguf_file import FLOATS, GGUFFile
from pyprune.models.gguf_rope import DIVISORS, rope_parameters, rotary_pairs
from pyprune.models.names import gguf_name
from pyprune.models.reading import read_decoder
from pyprune.models.sizes import BlockSizes
from pyprune.models.tensors import TensorSource
from pyprune.models.tokenizers import TokenizerSource

# Metadata under the architecture's name that would change the computation.
_OTHER_MATH = ("expert_count", "expert_used_count", "attention.sliding_window", "attention.clamp_kqv",
               "attention.scale", "logit_scale", "embedding_scale", "residual_scale")  # fmt: skip
_MOST_HEAD = 1 << 16  # values; frequencies are computed for as many as the metadata says
_COUNTS = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")


def load_gguf(path: Path, name: str, dtype: torch.dtype | None, device: torch.device) -> Decoder:
    """Read a GGUF file. `dtype` None: the float type that all its matrices share, else float32.

    InputError for another architecture, for tensors or metadata that the decoder cannot honour, and as `GGUFFile`.
    """
    file = GGUFFile(path)
    architecture = file.value("general.architecture")
    family = family_of_gguf(architecture, str(path))
    config, sizes = _config(file, family, architecture)
    source = _GGUFSource(file, family, sizes)
    stored = _matrix_dtype(file)
    if device.type != "meta":
        file.warn_of_slow_types()
    decoder = read_decoder(
        family, {**config, "dtype": str(stored).removeprefix("torch.")},
        source, name=name, where=str(path), dtype=dtype or stored, device=device, sizes=sizes,
    )  # fmt: skip
    unused = sorted(set(file.tensors) - source.taken - {DIVISORS})
    if unused:
        raise InputError(f"{path}: tensor {unused[0]} is not part of the {architecture} architecture")
    if architecture == RAGGED and device.type != "meta":
        decoder = without_stand_ins(decoder)
    return replace(decoder, tokenizer_source=_tokenizer_source(file))


def without_stand_ins(decoder: Decoder) -> Decoder:
    """The decoder without the sublayers of zeros that `gguf_writer` puts where llama.cpp cannot do without."""

    def zero(*linears: Linear) -> bool:
        return all(linear.bias is None and not linear.weight.any() for linear in linears)

    blocks = []
    for block in decoder.blocks:
        mha, ffn = block.mha, block.ffn
        if mha is not None and mha.heads == 1 and zero(mha.q, mha.k, mha.v, mha.o):
            mha = None
        if ffn is not None and ffn.width == 1 and zero(ffn.gate, ffn.up, ffn.down):
            ffn = None
        blocks.append(replace(block, mha=mha, ffn=ffn))
    return replace(decoder, blocks=tuple(blocks))


def _tokenizer_source(file: GGUFFile) -> TokenizerSource | None:
    if "tokenizer.ggml.tokens" not in file.metadata_keys():
        return None
    return TokenizerSource(str(file.path.parent), file.path.name)


def _matrix_dtype(file: GGUFFile) -> torch.dtype:
    # Norms are float32 in every file, so only matrices tell.
    kinds = {tensor.type.name for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return FLOATS.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32


class _GGUFSource(TensorSource):
    def __init__(self, file: GGUFFile, family: Family, sizes: Sequence[BlockSizes]) -> None:
        super().__init__(gguf_name)
        self._file = file
        self._permuted: dict[str, int] = {}  # the heads of rows that are interleaved
        if family.gguf_permutes_qk:
            for place, size in enumerate(sizes):
                self._permuted |= {f"blk.{place}.attn_q": size.heads, f"blk.{place}.attn_k": size.kv_heads}

    def names(self) -> Any:
        return self._file.tensors.keys()

    def where(self, name: str) -> str:
        return str(self._file.path)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file.tensors[name].shape

    def read(self, name: str) -> Tensor:
        return self._read(name, torch.empty(self.shape(name), dtype=self._file.own_dtype(name)))

    def _take(self, part: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, share: bool) -> Tensor:
        self.require(part, shape)  # of sizes alone, too: the header has them
        return super()._take(part, shape, dtype, device, share)

    def _copied(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, share: bool
    ) -> Tensor:
        home = self.pages.empty(shape, dtype) if device.type == "cpu" else torch.empty(shape, dtype=dtype)
        return self.pages.move(self._read(name, home), dtype, device)

    def _read(self, name: str, tensor: Tensor) -> Tensor:
        """`tensor`, filled from the file."""
        heads = self._permuted.get(name.rpartition(".")[0])
        self._file.read_into(name, tensor if heads is None else rotary_pairs(tensor, heads))
        return tensor


def _config(file: GGUFFile, family: Family, architecture: str) -> tuple[dict[str, Any], list[BlockSizes]]:
    """The Hugging Face configuration that the file's metadata describes, and each block's sizes."""
    where = str(file.path)

    def value(key: str, default: Any = None) -> Any:
        stored = file.value(f"{architecture}.{key}")
        if isinstance(stored, list):  # one number a block
            if len(set(stored)) != 1:
                raise InputError(f"{where}: {architecture}.{key} differs between blocks; a uniform model is accepted")
            stored = stored[0]
        if stored is None:
            stored = default
        if stored is None:
            raise InputError(f"{where}: metadata {architecture}.{key} is missing")
        return stored

    def count(key: str, default: Any = None) -> int:
        return _count(value(key, default), f"{where}: {architecture}.{key}")

    for key in _OTHER_MATH:
        if value(key, 0):
            raise InputError(f"{where}: {architecture}.{key} = {value(key)} is not supported")
    if architecture == RAGGED:
        heads, kv_heads, width = _greatest(file)
    else:
        heads, width = count("attention.head_count"), count("feed_forward_length")
        kv_heads = count("attention.head_count_kv", heads)
    hidden, blocks = count("embedding_length"), count("block_count")
    if blocks > len(file.tensors) and architecture != RAGGED:  # whose blocks may be empty, and are counted by its lists
        raise InputError(f"{where}: {architecture}.block_count is {blocks}, but there are {len(file.tensors)} tensors")
    if not heads:
        raise InputError(f"{where}: {architecture}.attention.head_count is 0; at least one head is expected")
    head_dim = count("attention.key_length", value("rope.dimension_count", hidden // heads))
    if head_dim > _MOST_HEAD:
        raise InputError(f"{where}: heads of {head_dim} values; at most {_MOST_HEAD} are expected")
    for key in ("attention.value_length", "rope.dimension_count"):
        if value(key, head_dim) != head_dim:
            raise InputError(f"{where}: {architecture}.{key} {value(key)} differs from the head size {head_dim}")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise InputError(f"{where}: tensor token_embd.weight is missing")
    context = count("context_length")
    config = {
        "model_type": family.model_types[0],
        "vocab_size": count("vocab_size", embedding.shape[0]),
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": rope_parameters(file, architecture, context, head_dim),
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }
    for ours, theirs in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")):
        key = f"tokenizer.ggml.{theirs}_token_id"
        token = file.value(key)
        config[ours] = None if token is None else _count(token, f"{where}: {key}")

    family.check(config, where)
    sizes = _sizes(file, architecture, config)
    default = family.sizes({**config, "num_hidden_layers": 1})[0]
    try:
        if architecture == RAGGED or not sizes:
            return family.sized_config(config, default), sizes
        if family.gguf_optional_biases and sizes[0].qk_norm == default.qk_norm:
            # Biases that a plain configuration cannot state are stated by `sizes` alone.
            with contextlib.suppress(InputError):
                return family.sized_config(config, sizes[0]), sizes
            return family.sized_config(config, default), sizes
        return family.sized_config(config, sizes[0]), sizes
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _count(value: Any, what: str) -> int:
    """A whole number of the metadata, as a size is; InputError naming `what` for anything else."""
    if not is_int(value) or not 0 <= value < 1 << 32:
        raise InputError(f"{what} is {str(value)[:200]!r}; a whole number of at most 32 bits is expected")
    return value


def _greatest(file: GGUFFile) -> tuple[int, int, int]:
    """Heads and KV heads of the block that has most, and the greatest FFN width."""
    lists = [file.value(f"{RAGGED}.{key}") for key in _COUNTS]
    for key, counts in zip(_COUNTS, lists, strict=True):
        if not isinstance(counts, list) or not counts:
            raise InputError(
                f"{file.path}: {RAGGED}.{key} is {str(counts)[:200]}; a list of one number a block is expected"
            )
        for number in counts:
            _count(number, f"{file.path}: a number in {RAGGED}.{key}")
    kv_heads, heads = max(zip(lists[1], lists[0], strict=False))
    return heads, kv_heads, max(lists[2])


def _sizes(file: GGUFFile, architecture: str, config: dict[str, Any]) -> list[BlockSizes]:
    """Each block's sizes; InputError for the two kinds of blocks that only Nemotron's files have."""
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    counts, blocks = [], config["num_hidden_layers"]
    for key, name in zip(_COUNTS, names, strict=True):
        stored = file.value(f"{architecture}.{key}")
        if isinstance(stored, list) and len(stored) != blocks:
            raise InputError(f"{file.path}: {architecture}.{key} has {len(stored)} numbers; one a block is expected")
        counts.append(stored if isinstance(stored, list) else [config[name]] * blocks)
    sizes: list[BlockSizes] = []
    for place, (heads, kv_heads, width) in enumerate(zip(*counts, strict=True)):
        where = f"{file.path}: block {place}"
        if heads and not kv_heads:
            raise InputError(f"{where}: {heads} heads and no KV heads (linear attention) are not supported")
        if heads and not width:
            raise InputError(f"{where}: attention without an FFN, which llama.cpp leaves out, is not supported")
        if heads and heads % kv_heads:
            raise InputError(f"{where}: {heads} heads are not a multiple of {kv_heads} KV heads")

        def biased(sublayer: str, *names: str, place: int = place) -> str:
            part = f"blocks.{place}.{sublayer}"
            return " ".join(name for name in names if gguf_name(f"{part}.{name}.bias") in file.tensors)

        sizes.append(
            BlockSizes(
                heads=heads,
                kv_heads=kv_heads,
                head_dim=config["head_dim"],
                width=width,
                attention_bias=biased("mha", "q", "k", "v", "o"),
                ffn_bias=biased("ffn", "gate", "up", "down"),
                qk_norm=gguf_name(f"blocks.{place}.mha.q_norm") in file.tensors,
            )
        )
    return sizes
