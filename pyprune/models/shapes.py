"""Named shapes with random weights: for timing and for tests, without a checkpoint."""

from __future__ import annotations

import os
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.models.families import FAMILIES, family_of
from pyprune.models.reading import read_decoder
from pyprune.models.sizes import BlockSizes
from pyprune.models.tensors import NoWeights, TensorSource

PREFIX = "shape:"
_SEED = 1234
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: hidden size, blocks, query and KV heads, head size, FFN width, vocabulary; its family, and the
    attention's window in all blocks but the first `full_blocks` (0: no window)."""

    hidden: int
    blocks: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: int = 0
    window: int = 0
    full_blocks: int = 0
    family: str = "llama"
    theta: float = 10000.0
    positions: int = 2048
    eps: float = 1e-6
    dtype: torch.dtype = torch.float32

    @property
    def parameters(self) -> int:
        family = family_of(self.family, PREFIX)
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        rows = {"q": q, "k": kv, "v": kv, "o": self.hidden, "gate": self.ffn, "up": self.ffn, "down": self.hidden}
        biased = f"{family.attention_bias({})} {family.ffn_bias({})}".split()
        vectors = 2 * self.hidden + sum(rows[name] for name in biased) + 2 * self.head_dim * family.qk_norm({})
        block = 2 * self.hidden * (q + kv) + 3 * self.hidden * self.ffn + vectors
        return self.blocks * block + (1 if self.tied else 2) * self.vocab * self.hidden + self.hidden


SHAPES: dict[str, Shape] = {
    "llama-7b": Shape(4096, 32, 32, 32, 128, 11008, 32000, dtype=torch.bfloat16),
    "vicuna-13b": Shape(5120, 40, 40, 40, 128, 13824, 32000, dtype=torch.bfloat16),
    "llama-1b": Shape(2048, 16, 32, 8, 64, 8192, 128256, tied=1, theta=500000.0, positions=131072, eps=1e-5,
                      dtype=torch.bfloat16),
    "tiny": Shape(64, 4, 4, 2, 16, 171, 257),
}  # fmt: skip

_REQUIRED = ("hidden", "blocks", "heads", "kv_heads", "head_dim", "ffn", "vocab")
_OPTIONAL = ("tied", "family", "window", "full_blocks")
# Far beyond any model, and small enough that sizes multiply within 64 bits and a plan is made in seconds.
_MOST = {
    "hidden": 1 << 20, "blocks": 10_000, "heads": 1 << 14, "kv_heads": 1 << 14, "head_dim": 1 << 14, "ffn": 1 << 24,
    "vocab": 1 << 24, "window": 1 << 40,
}  # fmt: skip
_ACCEPTED = (
    f"accepted: {', '.join(SHAPES)}, or {','.join(f'{key}=N' for key in _REQUIRED)};"
    " then [,tied=1][,family=NAME][,window=N][,full_blocks=N]"
)


def load_shape(spec: str, dtype: torch.dtype | None, device: torch.device) -> Decoder:
    """A model with random weights from a fixed seed, the same whatever the number of threads: `shape:NAME` or
    `shape:hidden=64,blocks=4,heads=4,kv_heads=2,head_dim=16,ffn=171,vocab=257`; then `,tied=1`, `,family=qwen2`,
    `,window=8` (every block's, or with `,full_blocks=2` only those after the first two); behind a name, sizes too.

    Weights are uniform with variance 1/in_features, so that activations neither vanish nor grow; RMSNorm weights lie
    around 1, biases have a standard deviation of 0.5. `dtype` None: bfloat16 for the large named shapes, else float32.
    On a GPU they are drawn there (a 7B in a second instead of a minute), by another generator: the values differ from
    the CPU's, their distribution does not.
    InputError for other specifications, and for more bytes than the machine (or the GPU) has memory.
    """
    shape = parse_shape(spec)
    dtype = dtype or shape.dtype
    _require_room(shape.parameters * dtype.itemsize, device, spec)
    for size, most in _MOST.items():
        if getattr(shape, size) > most:
            raise InputError(f"{spec}: {size}={getattr(shape, size)} is too large; sizes up to {most} are expected")
    config: dict[str, Any] = {
        "model_type": shape.family,
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": shape.eps,
        "tie_word_embeddings": bool(shape.tied),
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.theta},
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "dtype": str(shape.dtype).removeprefix("torch."),
    }
    family = family_of(shape.family, spec)
    family.check(config, spec)
    sizes = BlockSizes(
        shape.heads, shape.kv_heads, shape.head_dim, shape.ffn, family.attention_bias(config), family.ffn_bias(config),
        family.qk_norm(config),
    )  # fmt: skip
    try:
        config = family.sized_config(config, sizes)
        windows = [0] * shape.full_blocks + [shape.window] * (shape.blocks - shape.full_blocks)
        config = family.windowed_config(config, windows)
    except InputError as error:
        raise InputError(f"{spec}: {error}") from None
    source = NoWeights() if device.type == "meta" else _RandomWeights(shape, dtype)
    return read_decoder(family, config, source, name=spec, where=spec, dtype=dtype, device=device)


def _require_room(needed: int, device: torch.device, spec: str) -> None:
    if device.type == "meta":
        return
    if device.type == "cuda":
        memory_bytes = torch.cuda.mem_get_info(device)[1]
    else:
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory_bytes:
        raise InputError(f"{spec}: {needed} bytes ({needed / 2**30:,.1f} GiB) of weights are needed; {device} has"
                         f" {memory_bytes} bytes ({memory_bytes / 2**30:,.1f} GiB)")  # fmt: skip


def parse_shape(spec: str) -> Shape:
    """The sizes that `shape:...` names; InputError for an unknown name, key, family or value."""
    items = spec.removeprefix(PREFIX).split(",")
    base = SHAPES.get(items[0])
    sizes_in_spec: dict[str, Any] = {}
    for item in items if base is None else items[1:]:
        key, _, value = item.partition("=")
        form = r"\w+" if key == "family" else r"[0-9]{1,18}"
        if key not in (*_REQUIRED, *_OPTIONAL) or key in sizes_in_spec or not re.fullmatch(form, value):
            raise InputError(f"{spec}: {item!r} is not understood; {_ACCEPTED}")
        sizes_in_spec[key] = value if key == "family" else int(value)
        if key in _REQUIRED and not sizes_in_spec[key]:
            raise InputError(f"{spec}: {item} is too small; sizes from 1 are expected")
    missing = [key for key in _REQUIRED if base is None and key not in sizes_in_spec]
    if missing:
        raise InputError(f"{spec}: {missing[0]} is missing; {_ACCEPTED}")
    shape = Shape(**sizes_in_spec) if base is None else replace(base, **sizes_in_spec)
    families = [name for family in FAMILIES for name in family.model_types]
    if shape.family not in families:
        raise InputError(f"{spec}: family={shape.family}; accepted: {', '.join(families)}")
    if shape.tied > 1:
        raise InputError(f"{spec}: tied={shape.tied}; accepted: 0 or 1")
    if shape.full_blocks > shape.blocks:
        raise InputError(f"{spec}: full_blocks={shape.full_blocks}; up to {shape.blocks}, all blocks, is accepted")
    return shape


class _RandomWeights(TensorSource):
    """Weights made when they are asked for."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        super().__init__(lambda part: part)
        self._shape = shape
        self._dtype = dtype

    def names(self) -> tuple[str, ...]:
        return ("embedding",) if self._shape.tied else ("embedding", "head.weight")

    def where(self, name: str) -> str:
        return PREFIX

    def read(self, name: str) -> Tensor:
        raise NotImplementedError("random weights have no stored form")

    def take(self, part: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        if part.endswith("norm"):
            return self.pages.move(1 + _random(part, shape, 0.1, torch.float32, device), dtype, device, share=False)
        if part.endswith("bias"):
            std = 0.5
        elif part == "embedding" and not self._shape.tied:
            std = 1.0
        elif part.endswith(("o.weight", "down.weight")):  # 2L of them add up in the residual stream
            std = 1 / sqrt(shape[1] * 2 * self._shape.blocks)
        else:
            std = 1 / sqrt(shape[1])
        if device.type == "cpu":
            values = fill_uniform(self.pages.empty(shape, dtype), part, std)
        else:
            values = random_uniform_there(part, shape, std, dtype, device)
        return self.pages.move(values, dtype, device)


def _random(name: str, shape: tuple[int, ...], std: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    draw = random_uniform if device.type == "cpu" else partial(random_uniform_there, device=device)
    return draw(name, shape, std, dtype)


def random_uniform_there(
    name: str, shape: tuple[int, ...], std: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`random_uniform` by torch's generator on `device`: as repeatable, other values."""
    generator = torch.Generator(device).manual_seed(_SEED << 32 | zlib.crc32(name.encode()))
    limit = std * sqrt(3)
    return torch.empty(shape, dtype=dtype, device=device).uniform_(-limit, limit, generator=generator)


def random_uniform(name: str, shape: tuple[int, ...], std: float, dtype: torch.dtype) -> Tensor:
    """A tensor of values that `fill_uniform` writes."""
    return fill_uniform(torch.empty(shape, dtype=dtype), name, std)


def fill_uniform(tensor: Tensor, name: str, std: float) -> Tensor:
    """Uniform values of this standard deviation, mean 0, that depend on `name`, the shape's size and nothing else.

    Each chunk has a generator of its own, so that threads can share the work; 16 random bits a value are enough for a
    weight and quarter the time (drawing a 7B from a normal distribution takes minutes).
    """
    values = tensor.view(-1)
    scale = std * sqrt(3) / 2**15

    def fill(chunk: int) -> None:
        part = values[chunk * _CHUNK : (chunk + 1) * _CHUNK]
        seed = np.random.SeedSequence([_SEED, zlib.crc32(name.encode()), chunk])
        words = np.random.Generator(np.random.SFC64(seed)).integers(0, 2**64, size=-(-len(part) // 4), dtype=np.uint64)
        part.copy_(torch.from_numpy(words.view(np.int16)[: len(part)]).to(torch.float32).mul_(scale))

    chunks = -(-len(values) // _CHUNK)
    if chunks <= 1:
        fill(0)
        return tensor
    with ThreadPoolExecutor(max_workers=max(1, len(os.sched_getaffinity(0)))) as pool:
        list(pool.map(fill, range(chunks)))
    return tensor
