"""Reading GGUF files (llama.cpp's format) with the `gguf` package."""

from __future__ import annotations

import functools
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder, TokenizerSource
from pyprune.models.families import Family, family_of_gguf
from pyprune.models.families.family import gguf_name
from pyprune.models.sizes import BlockSizes
from pyprune.models.tensors import TensorSource, one_line

# Tensors in these types keep their type; all others are quantised and become float32.
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Frequency divisors that llama.cpp's converter computes for Llama 3's RoPE.
_ROPE_DIVISORS = "rope_freqs.weight"
# Metadata under the architecture's name that says nothing about the computation, or is used below. Any other rope key,
# and the keys of _OTHER_MATH, would change it.
_ROPE_KEYS = {"freq_base", "dimension_count", "scaling.type", "scaling.factor", "scaling.original_context_length",
              "scaling.finetuned", "scale_linear"}  # fmt: skip
_OTHER_MATH = ("expert_count", "expert_used_count", "attention.sliding_window", "attention.clamp_kqv",
               "attention.scale", "logit_scale", "embedding_scale", "residual_scale")  # fmt: skip


class GGUFFile:
    """An open GGUF file: metadata as Python values, tensors as the `gguf` package maps them.

    InputError when the `gguf` package is absent and when the file cannot be read, is cut short, or is one of several.
    """

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError:
            raise InputError(f"{path}: reading GGUF needs the gguf package; pip install gguf") from None
        self.path = path
        try:
            self._reader = _quick_reader(gguf)(path)
        except (ValueError, KeyError, IndexError, TypeError, OverflowError, OSError, struct.error) as error:
            raise InputError(f"{path}: not a whole GGUF file ({one_line(error)})") from None
        self.tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        if self._reader.byte_order != "I":
            raise InputError(f"{path}: written for the other byte order; a GGUF file of this machine's is expected")
        if (self.value("split.count") or 1) > 1:
            raise InputError(f"{path}: one of {self.value('split.count')} parts; a GGUF file in one piece is expected")

    def value(self, key: str) -> Any:
        """The metadata value, None when absent."""
        field = self._reader.get_field(key)
        return None if field is None else field.contents()

    def metadata_keys(self) -> list[str]:
        return list(self._reader.fields)

    def dequantized(self, name: str) -> Tensor:
        """The tensor in its own float type, or float32 where it is quantised: bit for bit what `gguf.dequantize` gives.

        InputError for a type that `gguf` cannot dequantise.
        """
        import gguf

        tensor = self.tensors[name]
        kind = tensor.tensor_type.name
        if kind in ("F32", "F16"):
            return torch.from_numpy(np.array(tensor.data))
        if kind == "BF16":
            return torch.from_numpy(np.array(tensor.data)).view(torch.bfloat16)
        try:
            with np.errstate(all="ignore"):  # NaN and infinity are reported by whoever takes the tensor
                values = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise InputError(f"{self.path}: tensor {name} is of type {kind}, which gguf cannot dequantise") from None
        return torch.from_numpy(np.ascontiguousarray(values))


@functools.cache
def _quick_reader(gguf: Any) -> Any:
    """GGUFReader that steps over the long arrays of a tokenizer: it would make a NumPy view of each of 150,000 entries,
    4 of the 5 seconds that SmolLM2 takes to open. Should `gguf` rename what is overridden, all still works, slowly.
    """
    kinds = gguf.GGUFValueType

    class QuickReader(gguf.GGUFReader):
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type == kinds.ARRAY and self.byte_order == "I":
                item, count = struct.unpack_from("=IQ", self.data, orig_offs)
                end = orig_offs + 12
                if count > 1024 and item == kinds.STRING:
                    for _ in range(count):
                        end += 8 + struct.unpack_from("=Q", self.data, end)[0]
                elif count > 1024 and item in self.gguf_scalar_to_np:
                    end += count * np.dtype(self.gguf_scalar_to_np[kinds(item)]).itemsize
                if end > orig_offs + 12:
                    return end - orig_offs, [], [], [kinds.ARRAY, kinds(item)]
            return super()._get_field_parts(orig_offs, raw_type)

    return QuickReader


def load_gguf(path: Path, name: str, dtype: torch.dtype | None, device: torch.device) -> Decoder:
    """Read a GGUF file. `dtype` None: the float type that all its matrices share, else float32.

    InputError for another architecture, for tensors or metadata that the decoder cannot honour, and as `GGUFFile`.
    """
    file = GGUFFile(path)
    family = family_of_gguf(file.value("general.architecture"), str(path))
    config = _config(file, family)
    source = _GGUFSource(file, family, config)
    own = _own_dtype(file)
    decoder = family.decoder(
        {**config, "dtype": str(own).removeprefix("torch.")},
        source, name=name, where=str(path), dtype=dtype or own, device=device,
    )  # fmt: skip
    unused = sorted(set(file.tensors) - source.taken - {_ROPE_DIVISORS})
    if unused:
        raise InputError(f"{path}: tensor {unused[0]} is not part of the {family.gguf_architectures[0]} architecture")
    return replace(decoder, tokenizer_source=_tokenizer_source(file))


def _tokenizer_source(file: GGUFFile) -> TokenizerSource | None:
    if "tokenizer.ggml.tokens" not in file.metadata_keys():
        return None
    return TokenizerSource(str(file.path.parent), file.path.name)


def _own_dtype(file: GGUFFile) -> torch.dtype:
    # Norms are float32 in every file, so only matrices tell.
    kinds = {tensor.tensor_type.name for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return _FLOATS.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32


class _GGUFSource(TensorSource):
    def __init__(self, file: GGUFFile, family: Family, config: dict[str, Any]) -> None:
        super().__init__(gguf_name)
        self._file = file
        self._permuted: dict[str, int] = {}
        if family.gguf_permutes_qk:
            self._permuted = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}

    def names(self) -> Any:
        return self._file.tensors.keys()

    def where(self, name: str) -> str:
        return str(self._file.path)

    def read(self, name: str) -> Tensor:
        tensor = self._file.dequantized(name)
        heads = self._permuted.get(name.split(".")[-2])
        if heads is None or tensor.shape[0] % (2 * heads):
            return tensor  # a wrong number of rows is reported by take()
        return rotary_halves(tensor, heads)


def rotary_halves(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k `[heads*head_dim, ...]` from llama.cpp's order (the two rows that rotate together are neighbours)
    to Hugging Face's (they are half a head apart)."""
    pairs = rows.view(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)


def _config(file: GGUFFile, family: Family) -> dict[str, Any]:
    """The Hugging Face configuration that the file's metadata describes."""
    architecture = family.gguf_architectures[0]
    where = str(file.path)

    def value(key: str, default: Any = None) -> Any:
        found = file.value(f"{architecture}.{key}")
        if isinstance(found, list):  # one number a block
            if len(set(found)) != 1:
                raise InputError(f"{where}: {architecture}.{key} differs between blocks; a uniform model is accepted")
            found = found[0]
        if found is None:
            found = default
        if found is None:
            raise InputError(f"{where}: metadata {architecture}.{key} is missing")
        return found

    for key in _OTHER_MATH:
        if value(key, 0):
            raise InputError(f"{where}: {architecture}.{key} = {value(key)} is not supported")
    hidden, heads = value("embedding_length"), value("attention.head_count")
    if not heads:
        raise InputError(f"{where}: {architecture}.attention.head_count is 0; at least one head is expected")
    head_dim = value("attention.key_length", value("rope.dimension_count", hidden // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if value(key, head_dim) != head_dim:
            raise InputError(f"{where}: {architecture}.{key} {value(key)} differs from the head size {head_dim}")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise InputError(f"{where}: tensor token_embd.weight is missing")
    config = {
        "model_type": family.model_types[0],
        "vocab_size": value("vocab_size", int(embedding.shape[-1])),
        "hidden_size": hidden,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope_parameters(file, architecture, value("context_length"), head_dim),
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }
    for ours, theirs in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")):
        config[ours] = file.value(f"tokenizer.ggml.{theirs}_token_id")

    def biases(half: str, names: tuple[str, ...]) -> str:
        return " ".join(name for name in names if gguf_name(f"blocks.0.{half}.{name}.bias") in file.tensors)

    sizes = BlockSizes(
        heads=heads,
        kv_heads=config["num_key_value_heads"],
        head_dim=head_dim,
        width=config["intermediate_size"],
        attention_bias=biases("mha", ("q", "k", "v", "o")),
        ffn_bias=biases("ffn", ("gate", "up", "down")),
        qk_norm=gguf_name("blocks.0.mha.q_norm") in file.tensors,
    )
    family.check(config, where)
    try:
        return family.sized_config(config, sizes)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _rope_parameters(file: GGUFFile, architecture: str, context: int, head_dim: int) -> dict[str, Any]:
    """transformers' `rope_parameters` for the file's RoPE; InputError for one that they cannot express."""
    where, prefix = str(file.path), f"{architecture}.rope."
    given = {key.removeprefix(prefix): file.value(key) for key in file.metadata_keys() if key.startswith(prefix)}
    for key, value in given.items():
        if key not in _ROPE_KEYS:
            raise InputError(f"{where}: {prefix}{key} = {value} is not supported")
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": given.get("freq_base", 10000.0)}
    factor = float(given.get("scaling.factor") or given.get("scale_linear") or 1.0)
    kind = given.get("scaling.type") or ("linear" if factor != 1.0 else "none")
    if kind == "linear":
        parameters.update(rope_type="linear", factor=factor)
    elif kind == "yarn":
        original = int(given.get("scaling.original_context_length") or context)
        parameters.update(rope_type="yarn", factor=factor, original_max_position_embeddings=original)
    elif kind != "none":
        raise InputError(f"{where}: {prefix}scaling.type {kind} is not supported; accepted: none, linear, yarn")
    for name in ("rope_factors_long.weight", "rope_factors_short.weight"):
        if name in file.tensors:
            raise InputError(f"{where}: tensor {name} is not supported")
    if _ROPE_DIVISORS not in file.tensors:
        return parameters
    if parameters["rope_type"] != "default":
        raise InputError(f"{where}: tensor {_ROPE_DIVISORS} together with {prefix}scaling.type {kind} is not supported")
    divisors = file.dequantized(_ROPE_DIVISORS).float().flatten().tolist()
    if len(divisors) != head_dim // 2 or not all(0 < d < float("inf") for d in divisors):
        raise InputError(f"{where}: tensor {_ROPE_DIVISORS} must hold {head_dim // 2} positive numbers")
    # LongRoPE with the same divisors at every length says exactly this, in a form that can be saved.
    return {
        **parameters,
        "rope_type": "longrope",
        "short_factor": divisors,
        "long_factor": divisors,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    }
