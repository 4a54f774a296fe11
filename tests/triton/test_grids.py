"""Grids of kernels against CUDA's limits: 65,535 programs in y and z."""

from __future__ import annotations

import pytest
import torch

from pyprune import triton_kernels

if not triton_kernels.available():
    pytest.skip(str(triton_kernels.why_not()), allow_module_level=True)

from pyprune.triton_kernels import attention, qkv_rope
from pyprune.triton_kernels.configs import SM_86, SM_90
from pyprune.triton_kernels.launch import MAX_GRID, Launch, recording

INT = torch.int64


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def attend(batch: int, tokens: int, heads: int, kv_heads: int, length: int, first: bool = False) -> list[Launch]:
    caches = [meta(batch, kv_heads, length, 64) for _ in range(2)]
    starts = meta(batch, dtype=INT) if first else None
    with recording(SM_90) as launches:
        result = attention.decode_attention(
            meta(batch, tokens, heads, 64), *caches, meta(batch, tokens, dtype=INT), 0.125, None, 0, starts
        )
    assert result.shape == (batch, tokens, heads, 64)
    return launches


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("tokens", [1, 40])
def test_attention_of_2048_sequences_with_32_heads_is_started_in_grids_that_cuda_takes(tokens: int, first: bool):
    main = [
        launch for launch in attend(2048, tokens, 32, 32, 300, first) if launch.kernel is attention.attention_kernel
    ]
    assert len(main) == 2
    for launch in main:
        assert all(size <= limit for size, limit in zip(launch.grid, MAX_GRID, strict=True))
        sequences = launch.grid[2] // 32
        for name in ("q", "k_cache", "positions", "out", *(["first"] if first else [])):
            assert launch.arguments[name].shape[0] == sequences, name
    assert sum(launch.grid[2] for launch in main) == 2048 * 32


def test_a_batch_that_fits_is_one_grid():
    assert len(attend(64, 1, 32, 8, 100)) == 1
    assert [launch.grid[2] for launch in attend(2047, 1, 32, 32, 100)] == [2047 * 32]


def test_what_no_grid_holds_is_refused_with_the_kernel_and_its_sizes_before_anything_starts():
    with pytest.raises(RuntimeError, match=r"^attention of q \[1, 1, 65536, 64\], k_cache .* 1 x 1 x 65536 programs"):
        attend(1, 1, 65_536, 65_536, 100)
    with pytest.raises(RuntimeError, match=r"^attention of q \[1, 4194304, 1, 64\].* x 65535 are accepted"):
        attend(1, 65_536 * 64, 1, 1, 100)


def test_heads_beyond_a_grid_are_refused_where_they_are_rotated():
    half = meta(40_000 * 2, 8)
    caches, table = [meta(1, 40_000, 9, 2) for _ in range(2)], meta(9, 1, dtype=torch.float32)
    with recording(SM_86) as launches, pytest.raises(RuntimeError, match=r"^rope_append of .* x 120000 programs"):
        qkv_rope.norm_qkv_rope(
            meta(1, 100, 8), meta(8), 1e-5, half, half, half, *[None] * 5, table, table, meta(1, 100, dtype=INT),
            *caches,
        )  # fmt: skip
    assert all(launch.kernel is not qkv_rope.rope_append_kernel for launch in launches)
