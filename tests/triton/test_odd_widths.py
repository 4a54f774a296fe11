"""A model of odd widths on a GPU, as far as that shows without one: what is launched, and what is compiled of it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyprune import Engine, ops, triton_kernels
from pyprune.models import Decoder, load_sizes
from pyprune.strides import gpu_rows

if not triton_kernels.available():
    pytest.skip(str(triton_kernels.why_not()), allow_module_level=True)

from pyprune.triton_kernels import gemm, inspect
from pyprune.triton_kernels.launch import Launch
from pyprune.triton_kernels.registration import OPERATORS

BF16 = torch.bfloat16
# A row of the paper's Table 1 (LLM-Pruner, 7B): the hidden size stays, 26 of 32 heads and 7155 of 11008 neurons.
MODEL = "shape:hidden=4096,blocks=1,heads=26,kv_heads=26,head_dim={},ffn=7155,vocab=32000"
ROWS = (1, 4, 16, 64)
WEIGHTS, ACTIVATIONS = ("a", "b", "k_weight", "v_weight"), ("x",)
READS = ("norm_qkv_rope", "o", "norm_gate_up", "down", "norm_head")  # of a step, in order: what reads weights

Step = Callable[[int, int], list[Launch]]


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Step]:
    """Makes a function that gives the launches of an Engine's decode step, of a compute capability and a batch."""
    for name, operator in OPERATORS.items():  # meta tensors would only meet the fakes
        monkeypatch.setattr(ops, name, operator)
    monkeypatch.setattr(Decoder, "require_weights", lambda self: None)

    def make(place: Callable[[Tensor], Tensor] = gpu_rows, head_dim: int = 128) -> Step:
        sizes = load_sizes(MODEL.format(head_dim), BF16).to(device="meta")
        engine = Engine(sizes.map(place), max_batch=64, max_len=512)

        def launches(capability: int, rows: int) -> list[Launch]:
            tokens = torch.empty(rows, dtype=torch.int64, device="meta")
            return inspect.recorded(capability, lambda: engine._step(tokens, tokens))

        return launches

    return make


def reading(launches: list[Launch]) -> dict[str, Launch]:
    """The launches that read weights, by what they compute."""
    return dict(zip(READS, filter(inspect.reads_weights, launches), strict=True))


_compiled: dict[object, inspect.Usage] = {}


def usage(launch: Launch, capability: int, only: tuple[str, ...]) -> inspect.Usage:
    """`inspect.usage`, once for all launches that Triton compiles alike (4 and 16 rows)."""

    def class_of(parameter: object) -> object:
        value = launch.arguments[parameter.name]
        if isinstance(value, Tensor):
            return value.dtype
        if parameter.is_constexpr or not isinstance(value, int):
            return value
        return None if parameter.do_not_specialize else (value == 1, value % 16 == 0)

    key = (launch.kernel.__name__, capability, only, *map(class_of, launch.kernel.params))
    if key not in _compiled:
        _compiled[key] = inspect.usage(launch, capability, only)
    return _compiled[key]


def loads(launch: Launch, capability: int) -> tuple[int, int]:
    """Bytes of the widest load of weights and of activations."""
    # Only they are declared to lie on 16 bytes, so that a load of 16 can only be theirs.
    weights, activations = (usage(launch, capability, only) for only in (WEIGHTS, ACTIVATIONS))
    return weights.weight_load, activations.widest_load


@pytest.mark.parametrize(
    ("capability", "of", "rows"),
    [
        pytest.param(capability, of, rows, marks=() if rows in often else pytest.mark.full)
        for capability, of, often in ((90, READS, ROWS), (86, READS[1:4], (1,)), (80, READS[1:4], ()))
        for rows in ROWS
    ],
)
def test_a_step_reads_weights_and_activations_16_bytes_at_a_time(
    capability: int, of: tuple[str, ...], rows: int, step: Callable[..., Step]
):
    launches = reading(step()(capability, rows))
    assert launches["down"].arguments["K"] == launches["norm_gate_up"].arguments["N"] == 7155
    assert launches["o"].arguments["K"] == 26 * 128
    widths = {name: usage(launches[name], capability, WEIGHTS).weight_load for name in of}
    assert widths == dict.fromkeys(of, 16)
    for name in ("o", "down"):  # the others' activations are as wide as the hidden size, a multiple of 16
        assert usage(launches[name], capability, ACTIVATIONS).widest_load == 16


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.full), 16])
def test_heads_that_fill_no_16_bytes_are_read_as_fast(rows: int, step: Callable[..., Step]):
    o = reading(step(head_dim=90)(90, rows))["o"]
    assert o.arguments["K"] * 2 % 16 == 8
    assert loads(o, 90) == (16, 16)


def test_packed_rows_come_2_bytes_at_a_time(step: Callable[..., Step]):
    down = reading(step(Tensor.contiguous)(90, 16))["down"]
    assert down.arguments["a"].stride(0) == 7155
    assert loads(down, 90) == (2, 16), "its activations are the kernels' own"
    x = torch.empty(16, 7155, dtype=BF16, device="meta")
    weight = inspect.weight(4096, 7155, BF16)
    [packed, *_] = inspect.recorded(90, lambda: OPERATORS["padded_linear"](x, weight))
    assert loads(packed, 90) == (16, 2)


@pytest.mark.parametrize("rows", ROWS)
def test_nothing_is_copied_between_the_operators_of_a_step(rows: int, step: Callable[..., Step]):
    for head_dim in (128, 90):
        launches = step(head_dim=head_dim)(90, rows)
        read = reading(launches)
        context = next(
            launch for launch in launches if launch.kernel.__name__ in ("attention_kernel", "reduce_splits_kernel")
        )
        for source, target in ((read["norm_gate_up"], read["down"]), (context, read["o"])):
            written, x = source.arguments["out"].untyped_storage(), target.arguments["x"].untyped_storage()
            assert written._cdata == x._cdata


@pytest.mark.parametrize("rows", [96, 1280])
def test_torchs_gemm_is_handed_aligned_views_of_many_rows(rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(gemm.VARIABLE, raising=False)
    handed: list[tuple[Tensor, ...]] = []

    def product(x: Tensor, weight: Tensor, *, out: Tensor) -> Tensor:
        handed.append((x, weight.T, out))
        return out

    def linear(x: Tensor, weight: Tensor, bias: None) -> Tensor:
        return product(x, weight.T, out=x.new_empty(len(x), len(weight)))

    monkeypatch.setattr(gemm.F, "linear", linear)
    monkeypatch.setattr(gemm.torch, "mm", product)
    x, norm = torch.empty(rows, 4096, dtype=BF16, device="meta"), torch.empty(4096, dtype=BF16, device="meta")
    gate, down = inspect.weight(7155, 4096, BF16), inspect.weight(4096, 7155, BF16)

    def ffn_sublayer() -> None:
        a = OPERATORS["norm_gate_up"](x, norm, 1e-5, gate, gate, None, None)
        assert a.shape == (rows, 7155)
        OPERATORS["linear_residual"](a, down, None, x)

    launches = inspect.recorded(90, ffn_sublayer)
    assert not any(map(inspect.reads_weights, launches)), "all products are torch's"
    assert [(w.shape[0], w.shape[1]) for _, w, _ in handed] == [(7155, 4096), (7155, 4096), (4096, 7168)]
    for matrix in (matrix for product in handed for matrix in product):
        assert matrix.stride(1) == 1
        assert matrix.stride(0) * 2 % 128 == 0
    assert all(x.shape[1] == w.shape[1] and x.shape[1] * 2 % 128 == 0 for x, w, _ in handed)
    assert handed[0][2].stride(0) == 7168, "of the result, whose width stays odd"


@pytest.mark.parametrize("capability", [86, 90])
def test_what_comes_between_the_products_of_many_rows_is_read_and_written_16_bytes_at_a_time(
    capability: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(gemm.VARIABLE, raising=False)
    x, norm = torch.empty(96, 4096, dtype=BF16, device="meta"), torch.empty(4096, dtype=BF16, device="meta")
    gate = inspect.weight(7155, 4096, BF16)
    call = functools.partial(OPERATORS["norm_gate_up"], x, norm, 1e-5, gate, gate, None, None)
    silu = inspect.recorded(capability, call)[-1]
    assert silu.kernel.__name__ == "silu_product_kernel"
    used = inspect.usage(silu, capability)
    assert used.stack == 0
    assert "ld.global.v4.b32" in used.ptx
    assert "st.global.v4.b32" in used.ptx
    assert "ld.global.b16" not in used.ptx
    assert "st.global.b16" not in used.ptx
