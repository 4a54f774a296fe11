"""The cases that are tuned for a model: each operator once a class of shapes, with random inputs of its sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pyprune.models.blocks import FFN, MHA, Linear
from pyprune.models.decoder import Decoder
from pyprune.strides import empty_rows, gpu_rows
from pyprune.triton_kernels import configs
from pyprune.triton_kernels.candidates import PAIRS
from pyprune.triton_kernels.configs import Architecture, Shape
from pyprune.triton_kernels.registration import OPERATORS

ROWS = (1, 2, 16, 32, 64)  # the classes of skinny products, each at its largest
LOSS_ROWS = 1024
MAX_CACHE_ROWS = 8192

Prepared = tuple[Callable[[], Tensor], list[Tensor]]
"""A call of an operator, and the tensors that it writes beside its result."""


@dataclass(frozen=True)
class Case:
    """An operator at a class of shapes. `prepare` creates its inputs on a device."""

    operator: str
    dtype: torch.dtype
    shape: Shape
    prepare: Callable[[torch.device], Prepared]


def cases(decoder: Decoder, arch: Architecture, rows: Sequence[int] = ROWS) -> list[Case]:
    """The cases of a decoder, of which only sizes and dtypes are read: it may lie on the meta device. rows: classes of
    skinny products, some of ROWS."""
    distinct: dict[tuple[str, Shape], Case] = {}
    for case in (*_skinny(decoder, arch, rows), *_attention(decoder, arch), _loss(decoder, arch)):
        distinct.setdefault((case.operator, case.shape), case)
    return list(distinct.values())


def _skinny(decoder: Decoder, arch: Architecture, classes: Sequence[int]) -> Iterator[Case]:
    def case(operator: str, rows: int, weight: Tensor, prepare: Callable[[torch.device], Prepared]) -> Case:
        tile = configs.skinny_tile(arch, rows, weight.dtype, operator in PAIRS)
        return Case(operator, weight.dtype, configs.shape_of(tile, *weight.shape), prepare)

    for rows in classes:
        for block in decoder.blocks:
            mha, ffn = block.mha, block.ffn
            if mha is not None:
                yield case("norm_qkv_rope", rows, mha.q.weight, partial(_qkv_inputs, mha, decoder.eps, rows))
                yield case("linear_residual", rows, mha.o.weight, partial(_residual_inputs, mha.o, rows))
            if ffn is not None:
                yield case("norm_gate_up", rows, ffn.gate.weight, partial(_gate_up_inputs, ffn, decoder.eps, rows))
                yield case("linear_residual", rows, ffn.down.weight, partial(_residual_inputs, ffn.down, rows))
        yield case("norm_head", rows, decoder.head.weight, partial(_head_inputs, decoder, rows))


def _attention(decoder: Decoder, arch: Architecture) -> Iterator[Case]:
    max_length = max(min(decoder.max_positions, MAX_CACHE_ROWS), configs.LENGTHS[0])
    for mha in (block.mha for block in decoder.blocks if block.mha is not None):
        for length in (length for length in configs.LENGTHS if length <= max_length):
            tile = configs.attention_tile(arch, mha.group, mha.head_dim, decoder.dtype, split=True)
            shape = configs.attention_shape(tile, length, mha.head_dim)
            yield Case("decode_attention", decoder.dtype, shape, partial(_attention_inputs, mha, decoder.dtype, length))


def _loss(decoder: Decoder, arch: Architecture) -> Case:
    weight = decoder.head.weight
    shape = configs.shape_of(configs.widened(arch.gemm, weight.dtype), *weight.shape)
    return Case("linear_cross_entropy", weight.dtype, shape, partial(_loss_inputs, decoder))


def _random(device: torch.device, dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    """Normal values, the same in every run; a matrix's are scaled so that its products stay near 1."""
    generator = torch.Generator(device).manual_seed(math.prod(shape) + seed)
    scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
    return (torch.randn(*shape, generator=generator, device=device) * scale).to(dtype)


def _random_like(device: torch.device, *tensors: Tensor | None) -> list[Tensor | None]:
    """Random tensors of the same sizes and dtypes; matrices are padded as on a GPU."""
    return [
        None if tensor is None else gpu_rows(_random(device, tensor.dtype, *tensor.shape, seed=seed))
        for seed, tensor in enumerate(tensors)
    ]


def _rows(device: torch.device, rows: int, weight: Tensor) -> Tensor:
    values = _random(device, weight.dtype, rows, 1, weight.shape[1])
    return empty_rows(*values.shape, dtype=values.dtype, device=device).copy_(values)


def _qkv_inputs(mha: MHA, eps: float, rows: int, device: torch.device) -> Prepared:
    """One token of each of `rows` sequences, in the only row of its cache."""
    x = _rows(device, rows, mha.q.weight)
    [norm, *weights] = _random_like(
        device, mha.norm, mha.q.weight, mha.k.weight, mha.v.weight, mha.q.bias, mha.k.bias, mha.v.bias, mha.q_norm,
        mha.k_norm,
    )  # fmt: skip
    angle = _random(device, torch.float32, 2, mha.head_dim // 2)
    place = torch.zeros(rows, 1, dtype=torch.int64, device=device)
    caches = [x.new_empty(rows, mha.kv_heads, 1, mha.head_dim) for _ in range(2)]
    args = (x, norm, eps, *weights, angle.cos(), angle.sin(), place + 1, *caches)
    return lambda: OPERATORS["norm_qkv_rope"](*args, slots=place), caches


def _residual_inputs(linear: Linear, rows: int, device: torch.device) -> Prepared:
    x = _rows(device, rows, linear.weight)
    weight, bias = _random_like(device, linear.weight, linear.bias)
    residual = _random(device, x.dtype, rows, 1, len(linear.weight))
    return lambda: OPERATORS["linear_residual"](x, weight, bias, residual), []


def _gate_up_inputs(ffn: FFN, eps: float, rows: int, device: torch.device) -> Prepared:
    x = _rows(device, rows, ffn.gate.weight)
    [norm, *weights] = _random_like(device, ffn.norm, ffn.gate.weight, ffn.up.weight, ffn.gate.bias, ffn.up.bias)
    return lambda: OPERATORS["norm_gate_up"](x, norm, eps, *weights), []


def _head_inputs(decoder: Decoder, rows: int, device: torch.device) -> Prepared:
    x = _rows(device, rows, decoder.head.weight)
    norm, weight, bias = _random_like(device, decoder.norm, decoder.head.weight, decoder.head.bias)
    return lambda: OPERATORS["norm_head"](x, norm, decoder.eps, weight, bias), []


def _attention_inputs(mha: MHA, dtype: torch.dtype, length: int, device: torch.device) -> Prepared:
    """One token of one sequence that fills its cache."""
    q = _random(device, dtype, 1, 1, mha.heads, mha.head_dim)
    keys, values = _random(device, dtype, 2, 1, mha.kv_heads, length, mha.head_dim)
    last = torch.full((1, 1), length - 1, dtype=torch.int64, device=device)
    return lambda: OPERATORS["decode_attention"](q, keys, values, last, mha.head_dim**-0.5), []


def _loss_inputs(decoder: Decoder, device: torch.device) -> Prepared:
    head = decoder.head
    norm, weight, bias = _random_like(device, decoder.norm, head.weight, head.bias)
    x = _random(device, head.weight.dtype, LOSS_ROWS, 1, head.weight.shape[1])
    targets = (torch.arange(LOSS_ROWS, device=device) % len(head.weight)).view(-1, 1)
    return lambda: OPERATORS["linear_cross_entropy"](x, weight, targets, norm, decoder.eps, bias), []
