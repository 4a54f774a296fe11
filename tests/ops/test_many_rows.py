"""More than 64 rows of activations, or 16 tokens of a sequence, by our own kernels or torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from pyprune import ops
from pyprune.errors import InputError
from pyprune.ops import native
from tests.judge import assert_no_worse_than_torch
from tests.library import needs_library
from tests.ops.inputs import WEIGHTS, double, low, norm, random, weight

D = ops.reference
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture
def own(isa: str) -> Iterator[None]:
    """Our own kernels for any number of rows, on every instruction set."""
    native.select_gemm("own")
    yield
    native.select_gemm("auto")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("gemm", ["own", "torch"])
@pytest.mark.parametrize("dtype", WEIGHTS)
# One span or several, one group of them or several; blocks of weight rows that are whole, cut, or less than one.
@pytest.mark.parametrize(("rows", "out", "inner"), [(65, 37, 61), (130, 75, 2601), (401, 130, 257), (97, 1, 1)])
def test_projections_are_as_exact_as_pytorch(
    isa: str, request, gemm: str, dtype: torch.dtype, rows: int, out: int, inner: int
):
    request.addfinalizer(partial(native.select_gemm, "auto"))
    native.select_gemm(gemm)
    x, w, b, n = random(rows, inner), weight(out, inner, dtype), random(out, dtype=dtype), norm(inner, dtype)
    up = weight(out, inner, dtype)
    for name, args in (
        ("padded_linear", [x, w, b]),
        ("linear_residual", [x, w, b, random(rows, out)]),
        ("norm_head", [x, n, 1e-5, w, None]),
        ("norm_gate_up", [x, n, 1e-5, w, up, b, random(out, dtype=dtype)]),
    ):
        reference = D.REFERENCE[name]
        plain, exact = reference(*low(dtype, *args)), reference(*double(*args))
        assert_no_worse_than_torch(getattr(ops, name)(*args), plain, exact, dtype=dtype)


def projections(inner: int, dtype: torch.dtype) -> list[Callable[[Tensor], Tensor]]:
    """Functions of x `[rows, inner]`, whose residual is a part of x itself."""
    w, up, n = weight(75, inner, dtype), weight(75, inner, dtype), norm(inner, dtype)
    q, k, v = (weight(heads * 24, inner, dtype) for heads in (4, 2, 2))
    cos, sin = torch.rand(7, 12), torch.rand(7, 12)

    def attention_half(x: Tensor) -> Tensor:
        keys, values = torch.zeros(len(x), 2, 7, 24), torch.zeros(len(x), 2, 7, 24)
        positions = torch.full((len(x), 1), 3)
        queries = ops.norm_qkv_rope(
            x[:, None], n, 1e-5, q, k, v, None, None, None, None, None, cos, sin, positions, keys, values
        )
        return torch.cat([queries.flatten(1), keys[:, :, 3].flatten(1), values[:, :, 3].flatten(1)], -1)

    target = torch.arange(500) % 75
    return [
        lambda x: ops.padded_linear(x, w),
        lambda x: ops.linear_residual(x, w, None, x[:, :75].contiguous()),
        lambda x: ops.norm_gate_up(x, n, 1e-5, w, up, None, None),
        lambda x: ops.linear_cross_entropy(x, w, target[: len(x)], n, 1e-5),
        attention_half,
    ]


@pytest.mark.usefixtures("own", "threads")
@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("inner", [93, 2601])
def test_a_row_has_the_same_bits_among_any_number_of_rows_and_with_any_threads(dtype: torch.dtype, inner: int):
    x = random(300, inner)
    for place, run in enumerate(projections(inner, dtype)):
        whole = run(x)
        for count in (1, 4, 64, 65, 130):
            assert torch.equal(run(x[:count]), whole[:count]), f"projection {place}, {count} rows"
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(run(x), whole), f"projection {place}, {count} threads"


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("width", [33, 200])
def test_compressed_weights_give_the_bits_of_bfloat16(width: int):
    x, w, n = random(150, width), weight(75, width, torch.bfloat16), norm(width, torch.bfloat16)
    small = ops.compress_bfloat16(w)
    target = torch.randint(0, 75, (150,))
    for run in (
        lambda w: ops.padded_linear(x, w),
        lambda w: ops.norm_gate_up(x, n, 1e-5, w, w, None, None),
        lambda w: ops.linear_cross_entropy(x, w, target),
    ):
        assert torch.equal(run(small), run(w))


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize(
    ("rows", "vocab", "hidden"), [(1, 3000, 40), (70, 1024, 33), (130, 2500, 61), (401, 1030, 700)]
)
def test_the_loss_is_as_exact_as_pytorch(rows: int, vocab: int, hidden: int, dtype: torch.dtype):
    x, w, target = random(rows, hidden) * 3, weight(vocab, hidden, dtype), torch.randint(0, vocab, (rows,))
    for args in ([x, w, target], [x, w, target, norm(hidden, dtype), 1e-5, random(vocab, dtype=dtype)]):
        plain, exact = D.linear_cross_entropy(*low(dtype, *args)), D.linear_cross_entropy(*double(*args))
        assert_no_worse_than_torch(ops.linear_cross_entropy(*args), plain, exact, tiny=2e-6, dtype=dtype)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("dtype", HALF)
def test_the_loss_hides_no_nan_and_survives_infinite_logits(dtype: torch.dtype):
    x, w = random(70, 16), weight(2500, 16, dtype)
    for row in (0, 1023, 1024, 2499):
        bad = w.clone()
        bad[row, 0] = torch.nan
        assert torch.isnan(ops.linear_cross_entropy(x, bad, torch.arange(70))).all()
    bias = torch.zeros(2500, dtype=dtype)
    bias[100:2200] = -torch.inf  # a stretch of its own and parts of two others
    target = torch.arange(70)
    exact = D.linear_cross_entropy(x.double(), w.double(), target, bias=bias.double())
    plain = D.linear_cross_entropy(x.to(dtype), w, target, bias=bias)
    shown = exact.isfinite()
    assert shown.any()
    result = ops.linear_cross_entropy(x, w, target, bias=bias)
    assert torch.equal(result.isfinite(), shown)
    assert_no_worse_than_torch(result[shown], plain[shown], exact[shown], tiny=2e-6, dtype=dtype)


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("heads", [(6, 2), (3, 3), (65, 1)], ids=str)
@pytest.mark.parametrize("window", [0, 1, 30, 290])
def test_each_of_many_tokens_attends_as_it_would_alone(
    isa: str, dtype: torch.dtype, heads: tuple[int, int], window: int
):
    tokens, length = 50, 600
    q = random(2, tokens, heads[0], 18)
    keys, values = (torch.full((2, heads[1], length, 18), torch.nan, dtype=dtype) for _ in range(2))
    start = torch.tensor([[0], [500]])
    positions = start + torch.arange(tokens)
    first = torch.tensor([0, 300])
    for b, stop in enumerate((50, 550)):
        for cache in (keys, values):
            cache[b, :, int(first[b]) : stop] = random(heads[1], stop - int(first[b]), 18, dtype=dtype)
    whole = ops.decode_attention(q, keys, values, positions, 0.3, None, 0, first, window)
    assert torch.isfinite(whole).all()
    for t in (0, 1, 9, 21, 49):
        alone = positions[:, t : t + 1].contiguous()
        one = ops.decode_attention(q[:, t : t + 1], keys, values, alone, 0.3, None, 0, first, window)
        assert torch.equal(one, whole[:, t : t + 1])


@needs_library
def test_what_multiplies_many_rows_can_be_chosen_and_another_name_is_refused(request):
    request.addfinalizer(partial(native.select_gemm, "auto"))
    native.select_gemm("own")
    assert native.has_own_gemm(torch.bfloat16)
    native.select_gemm("torch")
    assert not native.has_own_gemm(torch.bfloat16)
    with pytest.raises(InputError, match="GEMM 'mkl': one of auto, own, torch is expected"):
        native.select_gemm("mkl")
    assert not native.has_own_gemm(torch.bfloat16)
