"""Inputs for every operator: odd and aligned sizes, few and many rows, poisoned caches, the skip mask.

A case is an operator, a label and a function that makes its arguments; random values come from the case's own seed, so
that each can be repeated alone. Never zeros: they hide what was not written.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FEW, MANY = (1, 2, 5, 16, 64), (65, 130, 1280)
ODD, ALIGNED = (171, 129), (256, 512)
"""(out, in) that meet every number of rows."""

PAPER_WIDTHS = (8807, 7816, 7156, 8577, 7497, 6781, 8256, 7155, 6054)
"""FFN widths of LLaMA-7B in the paper's Table 1."""


class Draw:
    """Random tensors of one case, made on the device: there a large weight takes no time."""

    def __init__(self, seed: int, label: str, dtype: torch.dtype, device: torch.device | str) -> None:
        self.generator = torch.Generator(device).manual_seed(seed << 32 | zlib.crc32(label.encode()))
        self.dtype, self.device = dtype, device

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(*shape, generator=self.generator, device=self.device) * scale
        return values.to(dtype or self.dtype)

    def weight(self, out: int, inner: int) -> Tensor:
        return self.normal(out, inner, scale=inner**-0.5)

    def norm(self, size: int) -> Tensor:
        return (self.uniform(size) + 0.5).to(self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        """float32 in [0, 1)."""
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator, device=self.device)

    def order(self, size: int) -> Tensor:
        """0 .. size-1 in a random order."""
        return torch.randperm(size, generator=self.generator, device=self.device)

    def strided(self, out: int, inner: int) -> Tensor:
        """A weight whose rows lie apart, with NaN between them."""
        store = self.normal(out, inner + 19).fill_(float("nan"))
        store[:, :inner] = self.weight(out, inner)
        return store[:, :inner]


@dataclass(frozen=True)
class Case:
    """`build` gives the operator's positional arguments; `caches` are the places of those that it writes to;
    `direct` calls the CUDA library's own operator, past the dispatch."""

    operator: str
    label: str
    build: Callable[[Draw], list[Any]]
    caches: tuple[int, ...] = ()
    direct: bool = False


def cases(seed: int, size: str = "full", few_rows: bool = False) -> Iterator[Case]:
    """All cases. size: "full"; "small", of each kind the smallest; "tiny", a handful for a sanitizer or a dry run.

    few_rows: only one and two rows of the products, which is what the CUDA kernels are for.
    """
    yield from _projections(seed, size, few_rows)
    if few_rows:
        yield from _few_qkv(size)
    else:
        yield from _attention(size)
        yield from _losses(size)


def _projections(seed: int, size: str, few_rows: bool) -> Iterator[Case]:
    odd = random.Random(seed)
    extra = [(37, 61), (1145, 577), (1024, 2048), *((odd.randrange(33, 1500), odd.randrange(33, 1500)) for _ in "ab")]
    rows = (1, 2) if few_rows else FEW + MANY
    if size == "tiny":
        meetings = [(count, ODD) for count in ((1, 2) if few_rows else (1, 70))] + [(2, ALIGNED)]
    elif size == "small":
        meetings = [(count, shape) for count in rows[:3] for shape in (ODD, ALIGNED)]
    else:
        meetings = [(count, shape) for count in rows for shape in (ODD, ALIGNED)]
        meetings += [(count, shape) for count in (1, 2) for shape in extra]
        meetings += [(count, (64, inner)) for count in (1, 2) for inner in PAPER_WIDTHS] if few_rows else []
    for count, (out, inner) in meetings:
        yield from _products(count, out, inner, bias=(count + out) % 2 == 1)
    if size == "full":
        large = (1, 2) if few_rows else (1, 4, 1280)
        for count in large:  # the paper's widths, as they come and padded
            yield _residual(count, 4096, 7155, False)
            yield _residual(count, 4096, 7168, False)
            yield _gate_up(count, 7155, 4096, False)
            yield _head(count, 32000, 4096)
    for flag in (False, True):
        yield _residual(2, *ODD, True, skip=flag)
        yield _gate_up(2, *ODD, True, skip=flag)
    for count in (2,) if few_rows else (2, 70):
        yield from _padded_linears(count)


def _padded_linears(rows: int) -> Iterator[Case]:
    yield Case(
        "padded_linear", f"{rows}x129 -> 171, rows apart",
        lambda d: [d.normal(rows, 129), d.strided(171, 129)],
    )  # fmt: skip
    yield Case(
        "padded_linear", f"{rows}x129 -> 171, float32 activations",
        lambda d: [d.normal(rows, 129, dtype=torch.float32), d.weight(171, 129)],
    )  # fmt: skip


def _products(rows: int, out: int, inner: int, bias: bool) -> Iterator[Case]:
    yield Case(
        "padded_linear", f"{rows}x{inner} -> {out}{', bias' * bias}",
        lambda d: [d.normal(rows, inner), d.weight(out, inner), d.normal(out) if bias else None],
    )  # fmt: skip
    yield _residual(rows, out, inner, bias)
    yield _gate_up(rows, out, inner, bias)
    yield _head(rows, out, inner)


def _skip(d: Draw, flag: bool | None) -> list[Any]:
    return [] if flag is None else [torch.tensor([not flag, flag, not flag], device=d.device), 1]


def _suffix(bias: bool, skip: bool | None) -> str:
    return f"{', bias' * bias}{'' if skip is None else f', skip {skip}'}"


def _residual(rows: int, out: int, inner: int, bias: bool, skip: bool | None = None) -> Case:
    def build(d: Draw) -> list[Any]:
        x, weight = d.normal(rows, inner), d.weight(out, inner)
        return [x, weight, d.normal(out) if bias else None, d.normal(rows, out), *_skip(d, skip)]

    return Case("linear_residual", f"{rows}x{inner} -> {out}{_suffix(bias, skip)}", build)


def _gate_up(rows: int, out: int, inner: int, bias: bool, skip: bool | None = None) -> Case:
    def build(d: Draw) -> list[Any]:
        biases = [d.normal(out) if bias else None for _ in range(2)]
        weights = [d.weight(out, inner) for _ in range(2)]
        return [d.normal(rows, inner), d.norm(inner), 1e-5, *weights, *biases, *_skip(d, skip)]

    return Case("norm_gate_up", f"{rows}x{inner} -> {out}{_suffix(bias, skip)}", build)


def _head(rows: int, out: int, inner: int) -> Case:
    return Case(
        "norm_head", f"{rows}x{inner} -> {out}",
        lambda d: [d.normal(rows, inner), d.norm(inner), 1e-5, d.weight(out, inner), None],
    )  # fmt: skip


def _attention(size: str) -> Iterator[Case]:
    # batch, tokens, heads, kv_heads, head_dim, hidden, cache rows
    shapes = [(3, 5, 4, 2, 10, 33, 40)]
    if size != "tiny":
        shapes += [(1, 1, 9, 3, 64, 96, 700), (2, 3, 8, 1, 128, 40, 530)]
    if size == "full":
        shapes += [(64, 1, 4, 2, 16, 24, 300), (2, 40, 3, 3, 22, 50, 300), (1, 1, 32, 8, 64, 2048, 4096)]
        shapes += [(16, 1, 32, 32, 128, 4096, 64), (4, 70, 8, 8, 64, 512, 128)]
    for shape in shapes:
        yield _qkv(shape)
        yield _qkv(shape, biases=True, norms=True)
        yield _decode_attention(shape)
        for window in (0, 1, 30) if shape is shapes[0] or size == "full" else (30,):
            yield _decode_attention(shape, window=window, with_starts=True)
    for shape in shapes[:1] if size == "tiny" else shapes[:3]:
        yield _qkv(shape, slots=True)
    yield _qkv(shapes[0], biases=True, norms=True, skip=True)
    yield _decode_attention(shapes[0], skip=True)


def _few_qkv(size: str) -> Iterator[Case]:
    shapes = [(1, 1, 4, 2, 10, 40, 40), (2, 1, 9, 3, 64, 96, 70), (1, 2, 8, 1, 128, 36, 53)]
    if size == "full":
        shapes += [(2, 1, 3, 3, 22, 2056, 30), (1, 1, 32, 8, 64, 2048, 4096), (2, 1, 32, 32, 128, 4096, 64)]
    for shape in shapes[:1] if size == "tiny" else shapes:
        yield _qkv(shape)
        yield _qkv(shape, biases=True)
        yield _qkv(shape, biases=True, slots=True)
        for flag in (False, True):
            yield _qkv(shape, skip=flag)


def _positions(d: Draw, shape: tuple[int, ...]) -> Tensor:
    batch, tokens, *_, length = shape
    return d.integers(0, length - tokens + 1, batch, 1) + torch.arange(tokens, device=d.device)


def _qkv(
    shape: tuple[int, ...], biases: bool = False, norms: bool = False, skip: bool | None = None, slots: bool = False
) -> Case:
    batch, tokens, heads, kv_heads, head_dim, hidden, length = shape
    counts = (heads, kv_heads, kv_heads)

    def build(d: Draw) -> list[Any]:
        added = [d.normal(n * head_dim) if biases else None for n in counts]
        scales = [d.norm(head_dim) if norms else None for _ in range(2)]
        angle = d.uniform(length * (1 + slots), head_dim // 2) * 6
        weights = [d.weight(n * head_dim, hidden) for n in counts]
        # One sequence more than the batch has, all NaN: what no position names must stay so.
        caches = [d.normal(batch + 1, kv_heads, length, head_dim).fill_(float("nan")) for _ in range(2)]
        x = d.normal(batch, tokens, hidden)
        fixed = [x, d.norm(hidden), 1e-5, *weights, *added, *scales, angle.cos(), angle.sin()]
        if not slots:
            return [*fixed, _positions(d, shape), *caches, *_skip(d, skip)]
        # Rows that are not the positions, in another order, and positions beyond the cache.
        rows = torch.stack([d.order(length)[:tokens] for _ in range(batch)])
        return [*fixed, _positions(d, shape) + length, *caches, None, 0, rows]

    label = f"{shape}{', bias' * biases}{', q/k-norm' * norms}{', slots' * slots}{_suffix(False, skip)}"
    return Case("norm_qkv_rope", label, build, caches=(14, 15))


def _decode_attention(
    shape: tuple[int, ...], skip: bool | None = None, window: int = 0, with_starts: bool = False
) -> Case:
    batch, tokens, heads, kv_heads, head_dim, _, length = shape

    def build(d: Draw) -> list[Any]:
        positions = _positions(d, shape)
        starts = d.integers(0, length, batch) if with_starts else torch.zeros_like(positions[:, 0])
        caches = [d.normal(batch, kv_heads, length, head_dim) for _ in range(2)]
        for b in range(batch):  # NaN in every row that no query of the sequence may see
            position, start = positions[b, 0].item(), int(starts[b])
            seen = min(position, max(start, position - window + 1 if window else 0))
            for cache in caches:
                cache[b, :, :seen] = cache[b, :, int(positions[b, -1]) + 1 :] = float("nan")
        q = d.normal(batch, tokens, heads, head_dim, scale=2.0)
        fixed = [q, *caches, positions, head_dim**-0.5]
        return [*fixed, None, 0, starts, window] if with_starts else [*fixed, *_skip(d, skip)]

    suffix = f", first rows, window {window}" if with_starts else ""
    return Case("decode_attention", f"{shape}{suffix}{_suffix(False, skip)}", build)


def _losses(size: str) -> Iterator[Case]:
    shapes = [(3, 37, 61)]  # rows, vocabulary, hidden
    if size != "tiny":
        shapes += [(130, 2500, 33), (256, 1024, 512)]
    if size == "full":
        shapes += [(1100, 1030, 17), (1270, 32000, 4096)]
    for rows, vocab, hidden in shapes:
        for normed in (False, True):

            def build(
                d: Draw, rows: int = rows, vocab: int = vocab, hidden: int = hidden, normed: bool = normed
            ) -> list:
                targets = d.integers(0, vocab, rows)
                targets[::5] = -100
                scaled = d.normal(rows, hidden, scale=3.0)
                return [scaled, d.weight(vocab, hidden), targets, *([d.norm(hidden), 1e-5] if normed else [])]

            yield Case("linear_cross_entropy", f"{rows}x{hidden} -> {vocab}{', normed' * normed}", build)
