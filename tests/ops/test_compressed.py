"""Weights in 12 bits: nothing is lost, and every operator gives the bits of the weights that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyprune import ops
from tests.library import needs_library
from tests.ops.attention_inputs import CASES, poisoned, qkv_arguments
from tests.ops.inputs import norm, random, weight
from tests.ops.test_step import step_arguments

D = ops.reference
ODD = [(1, 1), (5, 63), (3, 64), (9, 65), (33, 577), (6, 2048), (7, 2601)]


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int16)


def trained(out: int, inner: int) -> Tensor:
    """A weight like those of models, with a few values that no code has: an exception in nearly every row."""
    w = (torch.randn(out, inner) * 0.02).to(torch.bfloat16)
    some = torch.rand(out, inner) < 2.0 / inner
    return torch.where(some, (torch.randn(out, inner) * 1e-9).to(torch.bfloat16), w)


def some_patterns(out: int, inner: int) -> Tensor:
    """Any 16 bits: infinities, NaN of every kind, subnormal numbers, both zeros."""
    return torch.randint(-(1 << 15), 1 << 15, (out, inner), dtype=torch.int16).view(torch.bfloat16)


@pytest.mark.parametrize("values", [trained, some_patterns])
@pytest.mark.parametrize(("out", "inner"), ODD)
def test_nothing_is_lost_and_the_reference_writes_the_same_bytes(isa: str, out: int, inner: int, values):
    w = values(out, inner)
    small = ops.compress_bfloat16(w)
    assert torch.equal(small, D.compress_bfloat16(w))
    assert torch.equal(bits(ops.decompress_bfloat16(small, inner)), bits(w))
    assert torch.equal(bits(D.decompress_bfloat16(small, inner)), bits(w))


def test_every_bfloat16_comes_back(isa: str):
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).view(256, 256)
    for w in (every, every.T.contiguous()):  # by exponent, and all exponents in a row
        assert torch.equal(bits(ops.decompress_bfloat16(ops.compress_bfloat16(w), 256)), bits(w))


def test_a_row_by_hand():
    # 1.0 is 0x3f80 and -1.5 is 0xbfc0, exponent 127; 2^-100 is 0x0d80, exponent 27. The first window with most values
    # is [113, 127], so 127 has code 14. Zero and what fills the group have 15.
    w = torch.tensor([[1.0, -1.5, 0.0, 2.0**-100]], dtype=torch.bfloat16)
    row = ops.compress_bfloat16(w)[0].tolist()
    assert row[:8] == [113, 0xBF, 1, 0, 4, 0, 0, 0]  # base, mark, one exception, four columns
    assert row[8:16] == [3, 0, 0x80, 0x0D, 0, 0, 0, 0]  # column 3 and its bits
    assert row[16:80] == [0x00, 0xC0, *[0] * 62]  # signs and mantissas
    assert row[80:112] == [0xFE, 0xFE, *[0xFF] * 30]  # codes, two a byte: values 0 and 1 stand beside 16 and 17
    assert len(row) == 112


def test_a_row_takes_twelve_bits_a_value_and_its_exceptions():
    w = torch.ones(3, 6400, dtype=torch.bfloat16)
    assert ops.compress_bfloat16(w).shape == (3, 16 + 9600)
    w[1, :2] = 1e-30  # the first two are in the head
    assert ops.compress_bfloat16(w).shape == (3, 16 + 9600)
    w[1, :8] = 1e-30
    assert ops.compress_bfloat16(w).shape == (3, 16 + 9600 + 32)  # six behind, in steps of 16 bytes


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 16, 64, 70])
def test_every_operator_gives_the_same_bits(isa: str, rows: int):
    for out, inner in [(9, 1), (37, 61), (75, 577), (18, 2601)]:
        x, n, residual = random(rows, inner), norm(inner, torch.bfloat16), random(rows, out)
        w, up, b = trained(out, inner), trained(out, inner), random(out, dtype=torch.bfloat16)
        small, small_up = ops.compress_bfloat16(w), ops.compress_bfloat16(up)
        target = torch.randint(0, out, (rows,))
        assert torch.equal(ops.padded_linear(x, small, b), ops.padded_linear(x, w, b))
        assert torch.equal(ops.linear_residual(x, small, None, residual), ops.linear_residual(x, w, None, residual))
        assert torch.equal(ops.norm_head(x, n, 1e-5, small), ops.norm_head(x, n, 1e-5, w))
        gate_up = ops.norm_gate_up(x, n, 1e-5, w, up, None, None)
        for g, u in ((small, small_up), (small, up), (w, small_up)):
            assert torch.equal(ops.norm_gate_up(x, n, 1e-5, g, u, None, None), gate_up)
        loss = ops.linear_cross_entropy(x, w, target, n, 1e-5)
        assert torch.equal(ops.linear_cross_entropy(x, small, target, n, 1e-5), loss)


@pytest.mark.parametrize("case", CASES)
def test_q_k_and_v_are_the_same_with_any_of_them_compressed(isa: str, case):
    given = list(qkv_arguments(case, torch.bfloat16, True))
    results = []
    for which in ((), (3, 4, 5), (4,)):
        caches = [poisoned(case, torch.bfloat16) for _ in range(2)]
        args = [ops.compress_bfloat16(one) if place in which else one for place, one in enumerate(given)]
        results.append((ops.norm_qkv_rope(*args, *caches), *caches))
    for results_of_one in zip(*results, strict=True):
        plain, *others = (bits(one) if one.dtype == torch.bfloat16 else one for one in results_of_one)
        assert all(torch.equal(other, plain) for other in others)


@pytest.mark.parametrize("batch", [1, 3, 5, 17])
def test_a_whole_step_is_the_same(isa: str, batch: int):
    args = step_arguments(batch, torch.bfloat16, torch.arange(batch))
    copies = [cache.clone() for cache in args[5]]
    expected = ops.decode_step(*args)

    def small(tensor: Tensor) -> Tensor:
        return ops.compress_bfloat16(tensor) if tensor.dim() == 2 else tensor

    args[2], args[8] = small(args[2]), small(args[8])
    args[3] = [w if place % 5 == 0 else small(w) for place, w in enumerate(args[3])]  # and some as they are
    written, args[5] = args[5], copies
    assert torch.equal(ops.decode_step(*args), expected)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(copies, written, strict=True))


def test_the_reference_implementations_take_compressed_weights_too():
    x, w = random(5, 61), trained(37, 61)
    small = D.compress_bfloat16(w)
    assert torch.equal(D.padded_linear(x, small), D.padded_linear(x, w))


def test_rows_may_lie_apart(isa: str):
    w, x = trained(9, 130), random(2, 130)
    small = ops.compress_bfloat16(w)
    apart = torch.full((9, small.shape[1] + 32), 255, dtype=torch.uint8)[:, : small.shape[1]].copy_(small)
    assert torch.equal(ops.padded_linear(x, apart), ops.padded_linear(x, w))


def of_65() -> Tensor:
    return ops.compress_bfloat16(trained(3, 65))


def of_640() -> Tensor:
    return ops.compress_bfloat16(some_patterns(3, 640))  # many exceptions, whose bytes are no groups


REFUSED = [
    (lambda o: o.compress_bfloat16(weight(3, 5, torch.float16)), "CPU bfloat16 matrix of 1 to 65535 columns"),
    (lambda o: o.compress_bfloat16(torch.zeros(5, dtype=torch.bfloat16)), "CPU bfloat16 matrix of 1 to 65535"),
    (lambda o: o.compress_bfloat16(torch.zeros(1, 65536, dtype=torch.bfloat16)), "1 to 65535 columns"),
    (lambda o: o.compress_bfloat16(torch.zeros(3, 0, dtype=torch.bfloat16)), "1 to 65535 columns"),
    (lambda o: o.compress_bfloat16(torch.zeros(4, 5, dtype=torch.bfloat16).T), "side by side is expected"),
    (lambda o: o.decompress_bfloat16(trained(3, 65), 65), r"bytes \(uint8\) .*are expected"),
    (lambda o: o.decompress_bfloat16(of_65(), 129), "129 columns are expected"),
    (lambda o: o.decompress_bfloat16(of_65(), 1), "1 columns are expected"),
    (lambda o: o.decompress_bfloat16(of_640(), 576), "576 columns are expected"),
    (lambda o: o.decompress_bfloat16(of_640(), 704), "704 columns are expected"),
    (lambda o: o.padded_linear(random(2, 66), of_65()), "66 columns are expected"),
    (lambda o: o.padded_linear(random(2, 64), of_65()), "64 columns are expected"),
    (lambda o: o.padded_linear(random(2, 128), of_640()), "128 columns are expected"),
    (lambda o: o.padded_linear(random(2, 704), of_640()), "704 columns are expected"),
    (lambda o: o.padded_linear(random(2, 65), torch.zeros(3, 400, dtype=torch.uint8)), "compress_bfloat16"),
    (lambda o: o.padded_linear(random(2, 65), torch.zeros(3, 9, dtype=torch.uint8)), "compress_bfloat16"),
]


@pytest.mark.parametrize("by", [ops, D], ids=["kernels", "reference"])
@pytest.mark.parametrize(("bad", "message"), REFUSED)
def test_what_is_no_compressed_weight_is_refused(bad, message: str, by):
    with pytest.raises(RuntimeError, match=message):
        bad(by)


@needs_library
def test_rows_cut_off_are_refused():
    with pytest.raises(RuntimeError, match="row 0 of 976 bytes is not one of compress_bfloat16"):
        ops.padded_linear(random(2, 640), of_640()[:, : 16 + 960])


def test_a_row_that_was_changed_is_found_on_the_way_back():
    small = ops.compress_bfloat16(trained(5, 65))
    small[2, 1] = 0
    for by in (ops, D):
        with pytest.raises(RuntimeError, match=r"row 2 of|rows of compress_bfloat16 for 65"):
            by.decompress_bfloat16(small, 65)


def test_a_gradient_is_refused():
    x, small = random(2, 65).requires_grad_(), ops.compress_bfloat16(trained(3, 65))
    with pytest.raises(RuntimeError, match="a bf16-lossless12 weight has no gradient"):
        ops.padded_linear(x, small)
