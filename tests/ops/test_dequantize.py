"""Quantised blocks of GGUF files as floats: the `gguf` package's values to the bit, by the kernel and by reference."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from pyprune import ops
from pyprune.ops import reference
from pyprune.ops.schemas import GGUF_TYPES
from tests import seeds
from tests.models.gguf_random import random_blocks

KINDS = [gguf.GGMLQuantizationType(number).name for number in GGUF_TYPES]
SEED = seeds.seed()


def sample(kind: str, rows: int = 37, blocks: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    """Random blocks, and what they mean by the package: `[rows, values]` float32."""
    quantised = gguf.GGMLQuantizationType[kind]
    columns = blocks * gguf.GGML_QUANT_SIZES[quantised][0]
    data = random_blocks(kind, rows, columns, np.random.default_rng(SEED))
    return torch.from_numpy(data).flatten(), torch.from_numpy(gguf.dequantize(data, quantised).copy())


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    kind = torch.int32 if one.dtype == torch.float32 else torch.int16
    return one.dtype == other.dtype and torch.equal(one.contiguous().view(kind), other.contiguous().view(kind))


def test_all_types_of_the_kernel_are_the_ones_named():
    assert KINDS == ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]


@pytest.mark.parametrize("isa", ops.native.runnable_isas() or [None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_packages_to_the_bit(kind, dtype, isa):
    data, expected = sample(kind)
    assert expected.isfinite().all()
    assert expected.unique().numel() > 100
    selected = ops.native.selected_isa()
    if isa is not None:
        ops.native.select_isa(isa)
    try:
        out = torch.full(expected.shape, torch.nan, dtype=dtype)
        ops.dequantize_gguf(data, int(gguf.GGMLQuantizationType[kind]), out)
    finally:
        if isa is not None:
            ops.native.select_isa(selected)
    assert same_bits(out, expected.to(dtype))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K"])
@pytest.mark.parametrize("scale", [0x0001, 0x03FF, 0x8200, 0x7BFF, 0xFBFF, 0x0000, 0x8000])
def test_scales_at_the_edges_of_float16(kind, scale):
    """Subnormal, greatest, and zeros of both signs, whose products are zeros of both signs."""
    data, _ = sample(kind, 3, 2)
    quantised = gguf.GGMLQuantizationType[kind]
    blocks = data.view(-1, gguf.GGML_QUANT_SIZES[quantised][1]).clone()
    blocks[:, 0], blocks[:, 1] = scale & 0xFF, scale >> 8
    expected = torch.from_numpy(gguf.dequantize(blocks.view(3, -1).numpy(), quantised).copy())
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        out = torch.empty(expected.shape, dtype=dtype)
        ops.dequantize_gguf(blocks.flatten(), int(quantised), out)
        assert same_bits(out, expected.to(dtype))


@pytest.mark.parametrize("by", [ops, reference], ids=["kernel", "reference"])
@pytest.mark.parametrize("kind", ["Q5_1", "Q6_K"])
def test_rows_may_lie_anywhere_and_nothing_else_is_written(by, kind):
    data, expected = sample(kind, 24, 3)
    columns = expected.shape[1]
    room = torch.full((3, 2, 4, columns + 5), -7.0, dtype=torch.bfloat16)
    by.dequantize_gguf(data, int(gguf.GGMLQuantizationType[kind]), room.transpose(1, 2)[..., :columns])
    assert same_bits(room[..., :columns].transpose(1, 2).reshape(24, columns), expected.bfloat16())
    assert (room[..., columns:] == -7).all()


@pytest.mark.parametrize("kind", [*KINDS, "TQ1_0", "TQ2_0", "IQ2_XXS", "IQ3_S"])
def test_the_reference_has_the_packages_other_types_too(kind):
    data, expected = sample(kind, 5, 2)
    out = torch.empty_like(expected)
    reference.dequantize_gguf(data, int(gguf.GGMLQuantizationType[kind]), out)
    assert same_bits(out, expected)


def test_no_rows_are_nothing_to_do():
    for by in (ops, reference):
        by.dequantize_gguf(torch.empty(0, dtype=torch.uint8), 2, torch.empty(0, 64))


@pytest.mark.parametrize("by", [ops, reference], ids=["kernel", "reference"])
@pytest.mark.parametrize(
    ("data", "kind", "out", "message"),
    [
        (torch.zeros(36, dtype=torch.uint8), 99, torch.empty(64), "type: 99"),
        (torch.zeros(36, dtype=torch.int8), 2, torch.empty(64), r"blocks: contiguous bytes \(uint8\)"),
        (torch.zeros(72, dtype=torch.uint8)[::2], 2, torch.empty(64), "blocks: contiguous bytes"),
        (torch.zeros(35, dtype=torch.uint8), 2, torch.empty(64), "blocks: 36 bytes for 64 values.*not 35"),
        (torch.zeros(36, dtype=torch.uint8), 2, torch.empty(4, 16), "out: rows of whole blocks of 32 values.*16"),
    ],
)
def test_wrong_arguments_are_named(by, data, kind, out, message):
    with pytest.raises(RuntimeError, match=message):
        by.dequantize_gguf(data, kind, out)


@pytest.mark.skipif(not ops.native.runnable_isas(), reason="the kernel's own limits")
def test_the_kernel_writes_floats_of_32_and_16_bits_only():
    with pytest.raises(RuntimeError, match="out: float32, bfloat16 or float16"):
        ops.dequantize_gguf(torch.zeros(36, dtype=torch.uint8), 2, torch.empty(64, dtype=torch.float64))
