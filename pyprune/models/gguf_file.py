"""Reading GGUF files (llama.cpp's format): a tensor at a time, from the mapped file into the weights' own memory."""

from __future__ import annotations

import contextlib
import mmap
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyprune import ops
from pyprune.errors import InputError, SlowTypeWarning
from pyprune.models.decoder import Decoder, Linear, TokenizerSource
from pyprune.models.families import Family, family_of_gguf
from pyprune.models.families.family import gguf_name
from pyprune.models.gguf_header import Header, HeaderError, StoredTensor
from pyprune.models.gguf_rope import DIVISORS, rope_parameters, rotary_pairs
from pyprune.models.mapped_file import bytes_of, release
from pyprune.models.records import is_whole
from pyprune.models.sizes import BlockSizes
from pyprune.models.tensors import TensorSource, one_line
from pyprune.ops.schemas import GGUF_TYPES

# Tensors in these types keep their type; all others are quantised and become float32.
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_AT_ONCE = 4 << 20  # bytes of the file that are in memory at a time, beside the weights
# Metadata under the architecture's name that would change the computation.
_OTHER_MATH = ("expert_count", "expert_used_count", "attention.sliding_window", "attention.clamp_kqv",
               "attention.scale", "logit_scale", "embedding_scale", "residual_scale")  # fmt: skip
RAGGED = "deci"
"""llama.cpp's architecture of Llama's blocks in sizes of their own, made for Nemotron's pruned models."""
_MOST_HEAD = 1 << 16  # values; frequencies are computed for as many as the metadata says
_COUNTS = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")


def import_gguf(path: str | os.PathLike[str]) -> Any:
    """The package `gguf`; InputError naming the file that needs it where it is absent."""
    try:
        import gguf
    except ImportError:
        raise InputError(f"{path}: GGUF files need the gguf package; pip install gguf") from None
    return gguf


class GGUFFile:
    """An open GGUF file: its metadata as Python values, and its tensors, which stay in it until they are read.

    InputError when the `gguf` package is absent and when the file cannot be read, is cut short, or is one of several.
    """

    def __init__(self, path: Path) -> None:
        import_gguf(path)
        self.path = path
        try:
            with path.open("rb") as file:
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._header = Header(self._mapped)
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: not a whole GGUF file ({one_line(error)})") from None
        self.tensors = self._header.tensors
        self._bytes = bytes_of(self._mapped)
        parts = self.value("split.count")
        if parts not in (None, 0, 1):
            raise InputError(f"{path}: one of {parts} parts; a GGUF file in one piece is expected")

    def value(self, key: str) -> Any:
        """The metadata value, None when absent."""
        try:
            return self._header.value(key)
        except HeaderError as error:
            raise InputError(f"{self.path}: {error}") from None

    def metadata_keys(self) -> list[str]:
        return list(self._header.metadata)

    def typed_value(self, key: str) -> tuple[Any, list[Any]]:
        """The metadata value and its types in `gguf`'s terms: of the value, of an array's items."""
        from gguf import GGUFValueType

        entry = self._header.metadata[key]
        kinds = [entry.kind] if entry.item is None else [entry.kind, entry.item]
        return self.value(key), [GGUFValueType(kind) for kind in kinds]

    def own_dtype(self, name: str) -> torch.dtype:
        """The float type in which the file keeps the tensor; float32 where it is quantised."""
        return _FLOATS.get(self.tensors[name].type.name, torch.float32)

    def read(self, name: str) -> Tensor:
        """The tensor in its own float type, or float32 where it is quantised: bit for bit what `gguf.dequantize` gives.

        InputError for a type that `gguf` cannot dequantise.
        """
        tensor = torch.empty(self.tensors[name].shape, dtype=self.own_dtype(name))
        self.read_into(name, tensor)
        return tensor

    def read_into(self, name: str, out: Tensor) -> None:
        """Write the tensor's values, rounded once, to `out`: on the CPU, of its shape, or with its rows in order under
        more dimensions. The file's pages are let go as they have been read. InputError as `read`.
        """
        stored = self.tensors[name]
        if out.shape[-1] != stored.shape[-1]:  # a vector in another order
            out.copy_(self.read(name).view(out.shape))
            return
        if out.dim() == 1:
            out = out.unsqueeze(0)
        each = stored.size // max(1, len(out))
        step = max(1, _AT_ONCE // max(1, each))
        for first in range(0, len(out), step):
            part = out[first : first + step]
            begin = stored.offset + first * each
            end = begin + len(part) * each
            self._decode(stored, self._bytes[begin:end], part)
            release(self._mapped, begin, end)

    def _decode(self, stored: StoredTensor, data: Tensor, out: Tensor) -> None:
        dtype = _FLOATS.get(stored.type.name)
        if dtype is not None:
            if stored.offset % dtype.itemsize:
                data = data.clone()
            out.copy_(data.view(dtype).view(out.shape))
        elif stored.type in GGUF_TYPES:
            ops.dequantize_gguf(data, int(stored.type), out)
        else:
            try:
                ops.reference.dequantize_gguf(data, int(stored.type), out)
            except NotImplementedError:
                raise InputError(
                    f"{self.path}: tensor {stored.name} is of type {stored.type.name}, which gguf cannot dequantise"
                ) from None

    def warn_of_slow_types(self) -> None:
        """Say once which types the C++ kernels do not dequantise (SlowTypeWarning), where there are any."""
        known = GGUF_TYPES if ops.native.load() else ()
        types = {tensor.type for tensor in self.tensors.values()}
        slow = sorted(kind.name for kind in types if kind.name not in _FLOATS and kind not in known)
        if slow:
            warnings.warn(
                f"{self.path}: {', '.join(slow)}: dequantised by the gguf package, in NumPy, which takes longer: "
                + ("the C++ library has no kernel for it" if known else "the C++ library is not in use"),
                SlowTypeWarning,
                stacklevel=5,
            )


def load_gguf(path: Path, name: str, dtype: torch.dtype | None, device: torch.device) -> Decoder:
    """Read a GGUF file. `dtype` None: the float type that all its matrices share, else float32.

    InputError for another architecture, for tensors or metadata that the decoder cannot honour, and as `GGUFFile`.
    """
    file = GGUFFile(path)
    architecture = file.value("general.architecture")
    family = family_of_gguf(architecture, str(path))
    config, sizes = _config(file, family, architecture)
    source = _GGUFSource(file, family, sizes)
    own = _own_dtype(file)
    if device.type != "meta":
        file.warn_of_slow_types()
    decoder = family.decoder(
        {**config, "dtype": str(own).removeprefix("torch.")},
        source, name=name, where=str(path), dtype=dtype or own, device=device, sizes=sizes,
    )  # fmt: skip
    unused = sorted(set(file.tensors) - source.taken - {DIVISORS})
    if unused:
        raise InputError(f"{path}: tensor {unused[0]} is not part of the {architecture} architecture")
    if architecture == RAGGED and device.type != "meta":
        decoder = without_stand_ins(decoder)
    return replace(decoder, tokenizer_source=_tokenizer_source(file))


def without_stand_ins(decoder: Decoder) -> Decoder:
    """The decoder without the halves of zeros that `gguf_writer` puts where llama.cpp cannot do without."""

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


def _own_dtype(file: GGUFFile) -> torch.dtype:
    # Norms are float32 in every file, so only matrices tell.
    kinds = {tensor.type.name for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return _FLOATS.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32


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
    if not is_whole(value) or not 0 <= value < 1 << 32:
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

        def there(half: str, *names: str, place: int = place) -> str:
            return " ".join(name for name in names if gguf_name(f"blocks.{place}.{half}.{name}.bias") in file.tensors)

        sizes.append(
            BlockSizes(
                heads=heads,
                kv_heads=kv_heads,
                head_dim=config["head_dim"],
                width=width,
                attention_bias=there("mha", "q", "k", "v", "o"),
                ffn_bias=there("ffn", "gate", "up", "down"),
                qk_norm=gguf_name(f"blocks.{place}.mha.q_norm") in file.tensors,
            )
        )
    return sizes
