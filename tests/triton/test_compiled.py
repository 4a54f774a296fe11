"""What the compiler makes of the kernels, as they would be launched; no GPU is needed.

All of it for sm_86 and sm_90, most cases for one of the two and, in `make test-full`, for the other; of each way to
compute one kernel for the other tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest
import torch

from pyprune import triton_kernels
from pyprune.errors import InputError

if not triton_kernels.available():
    pytest.skip(str(triton_kernels.why_not()), allow_module_level=True)

from pyprune.triton_kernels import configs, gemm, inspect, launch
from pyprune.triton_kernels.candidates import PAIRS, candidates
from pyprune.triton_kernels.configs import Shape
from pyprune.triton_kernels.launch import Launch, options, trying

ODD = inspect.ODD
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CASES = [  # rows, weights, activations, head size
    (1, BF16, BF16, 128), (64, FP32, FP32, 64), (64, BF16, FP32, 128), (16, FP16, FP16, 128), (256, BF16, BF16, 128),
]  # fmt: skip
ALIKE = [(2, BF16, FP32, 64), (1, FP16, FP32, 128), (16, BF16, BF16, 128), (64, BF16, BF16, 64)]
"""Cases whose rows, dtypes and head sizes are all among the others."""


def on_either(*cases: tuple, alike: Sequence[tuple] = ()) -> list:
    """Each case with a capability: 90 of the first, third, ..., 86 of the others; the other one, and both of those that
    are `alike`, in `make test-full`."""
    return [
        pytest.param(
            *case, capability,
            marks=() if case not in alike and (capability == 90) == (place % 2 == 0) else pytest.mark.full,
        )
        for place, case in enumerate((*cases, *alike))
        for capability in (86, 90)
    ]  # fmt: skip


WITH_VARIANTS = [(1, BF16), (16, FP16), (64, BF16)]
"""Rows and weights of the cases with every variant of an operator; `make test-full` has them in each of its own."""
DEPENDENT = {  # skinny kernels, which start while the kernel before them runs
    "skinny_linear_kernel", "sum_splits_kernel", "qkv_rope_kernel", "rope_append_kernel", "attention_kernel",
    "reduce_splits_kernel",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(launch.PDL_VARIABLE, raising=False)
    launch.dependent_wanted.cache_clear()
    yield
    launch.dependent_wanted.cache_clear()


@pytest.fixture
def own_gemm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Odd sizes of more than 64 rows run on `wide_linear`, padded or not."""
    monkeypatch.setenv(gemm.VARIABLE, "own")


def name(value: object) -> str:
    return str(value).removeprefix("torch.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "dtype", "activations", "head_dim", "capability"), on_either(*CASES, alike=ALIKE), ids=name
)
def test_nothing_spills_and_every_kernel_fits_its_architecture(
    rows: int,
    dtype: torch.dtype,
    activations: torch.dtype,
    head_dim: int,
    capability: int,
    request: pytest.FixtureRequest,
):
    seen, variants = set(), (rows, dtype) in WITH_VARIANTS or request.config.getoption("full")
    for operator, call in inspect.operators(rows, dtype, head_dim=head_dim, activations=activations).items():
        if "," in operator and not variants:
            continue
        for recorded in inspect.recorded(capability, call):
            seen.add(fits(operator, recorded, capability))
    assert {"attention_kernel", "loss_tiles_kernel", "reduce_tiles_kernel"} <= seen
    assert "rope_append_kernel" in seen or not variants


def fits(what: str, recorded: Launch, capability: int) -> str:
    """The kernel's name, if it spills nothing and takes no more than the architecture has."""
    used = inspect.usage(recorded, capability)
    assert used.stack == 0, f"{what}: {used.kernel} has {used.stack} bytes of stack"
    assert used.registers <= 255
    assert used.registers * 32 * recorded.warps <= configs.REGISTERS
    limit = configs.ARCHITECTURES[capability].shared_bytes
    assert used.shared <= limit, f"{what}: {used.kernel} takes {used.shared} bytes of shared memory"
    return used.kernel


OTHERS = {  # what is new in an architecture: registers, matrix instructions, attention, a full GEMM tile
    1: ("norm_gate_up", "decode_attention"), 16: ("linear_residual",), 64: ("norm_head",),
    256: ("linear_cross_entropy",),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "capability",
    [
        pytest.param(capability, marks=() if capability == 100 else pytest.mark.full)
        for capability in sorted(set(configs.ARCHITECTURES) - {86, 90})
    ],
)
def test_every_other_table_fits_its_architecture_and_starts_early_from_9_0_on(capability: int):
    if not inspect.knows(capability):
        pytest.skip(f"no ptxas here knows sm_{capability}")
    early = set()
    for rows, operators in OTHERS.items():
        calls = inspect.operators(rows, BF16, activations=BF16)
        for operator in operators:
            recorded = inspect.recorded(capability, calls[operator])[-2 if rows == 256 else 0]
            kernel = fits(operator, recorded, capability)
            early |= {kernel} if "griddepcontrol.wait" in inspect.usage(recorded, capability).ptx else set()
            assert options(recorded)["launch_pdl"] == (kernel in early)
    assert early == ({"skinny_linear_kernel", "attention_kernel"} if capability >= 90 else set())


@pytest.mark.parametrize(
    ("capability", "table"),
    [(75, 86), (80, 80), (86, 86), (87, 86), (89, 89), (90, 90), (100, 100), (103, 100), (110, 100), (120, 120),
     (121, 120), (130, 120)],
)  # fmt: skip
def test_a_device_takes_the_table_of_its_architecture_or_of_the_nearest_older_one(
    capability: int, table: int, monkeypatch: pytest.MonkeyPatch
):
    properties = SimpleNamespace(major=capability // 10, minor=capability % 10, multi_processor_count=17)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    configs._of_device.cache_clear()
    try:
        chosen = configs.architecture(torch.device("cuda", 0))
    finally:
        configs._of_device.cache_clear()
    assert (chosen.name, chosen.sm_count) == (f"sm_{table}", 17)
    assert chosen.dependent_launch == (capability >= 90)


TUNED = {  # operator: the rows of its class, columns and inner size of LLaMA-7B's
    "linear_residual": (1, 16, 64), "norm_gate_up": (2, 32), "norm_qkv_rope": (16,), "decode_attention": (1,),
    "linear_cross_entropy": (128,),
}  # fmt: skip


@pytest.mark.parametrize(
    ("operator", "rows", "capability"),
    on_either(*((name, rows) for name, classes in TUNED.items() for rows in classes)),
)
def test_a_sample_of_what_tuning_tries_spills_nothing_and_fits(operator: str, rows: int, capability: int):
    # All of them: once, by hand. Here the first and the last, which are far apart.
    arch = configs.ARCHITECTURES[capability]
    shape = Shape(rows, 2048, 128) if operator == "decode_attention" else Shape(rows, 16384, 4096)
    tiles = candidates(operator, BF16, shape, arch)
    for config in (tiles[1], tiles[-1]):
        with trying(config):
            main = inspect.recorded(capability, inspect.operators(rows, BF16, activations=BF16)[operator])
        fits(f"{config}", next(recorded for recorded in main if recorded.stages == config.stages), capability)


@pytest.mark.parametrize("capability", [86, 90])
def test_asynchronous_copies_of_weights_can_ask_for_no_bytes(capability: int):
    # What a skipped sublayer, whose loop has no steps, does with those before the loop: their size is not a constant.
    call = inspect.operators(16, BF16, activations=BF16)["linear_residual"]
    ptx = inspect.usage(inspect.recorded(capability, call)[0], capability).ptx
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global .*;", ptx)
    assert copies
    assert all(re.search(r"0x10, %r\d+;$", copy) for copy in copies)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "capability"), on_either((1,), alike=[(16,)]))
def test_weights_come_in_16_byte_loads_where_rows_are_padded_and_never_where_odd_rows_are_not(
    rows: int, capability: int, request: pytest.FixtureRequest
):
    # The paper's misaligned widths: with 7155 values of 2 bytes only every eighth row starts on 16 bytes.
    # An operator's variants load its weights alike. Padded rows of a step are test_odd_widths.py's too: here the other
    # two operators', and odd rows of the FFN; in `make test-full` all.
    all_read = {name for name in inspect.operators(1, BF16) if "attention" not in name and "," not in name}
    assert len(all_read) == 6
    of_padded_rows, of_odd_rows = {"padded_linear", "linear_cross_entropy"}, {"norm_gate_up", "linear_residual"}
    if request.config.getoption("full"):
        of_padded_rows = of_odd_rows = all_read
    for padded, names, expected in ((True, of_padded_rows, 16), (False, of_odd_rows, 2)):
        calls = inspect.operators(rows, BF16, ODD, ODD, padded)
        mains = {name: inspect.recorded(capability, calls[name])[0] for name in names}
        assert all(main.arguments["K"] == ODD for main in mains.values())
        widths = {name: inspect.usage(main, capability, inspect.WEIGHTS).weight_load for name, main in mains.items()}
        assert widths == dict.fromkeys(names, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operator", "dtype", "rows", "capability"),
    on_either(("padded_linear", BF16, 1024), ("norm_gate_up", BF16, 1024), ("linear_residual", BF16, 96),
              ("norm_gate_up", FP32, 70)),
    ids=name,
)  # fmt: skip
def test_odd_widths_of_a_gemm_fit_and_spill_nothing(
    operator: str, dtype: torch.dtype, rows: int, capability: int, own_gemm: None
):
    kernels = set()
    for recorded in inspect.recorded(
        capability, inspect.operators(rows, dtype, 4096, ODD, activations=dtype)[operator]
    ):
        kernels.add(fits(operator, recorded, capability))
    assert "wide_linear_kernel" in kernels
    assert ("sum_splits_kernel" in kernels) == (operator == "linear_residual")


@pytest.mark.slow
@pytest.mark.parametrize("capability", [pytest.param(86, marks=pytest.mark.full), 90])
def test_odd_widths_of_a_gemm_come_in_16_byte_loads_where_rows_are_padded(capability: int, own_gemm: None):
    for padded, expected in ((True, 16), (False, 2)):
        for operator in ("padded_linear", "norm_gate_up"):  # 7155 values a row in both
            call = inspect.operators(1024, BF16, ODD, ODD, padded, activations=BF16)[operator]
            main = next(filter(inspect.reads_weights, inspect.recorded(capability, call)))
            assert main.arguments["K"] == ODD
            assert inspect.usage(main, capability, inspect.WEIGHTS).weight_load == expected


def test_odd_widths_of_a_gemm_split_k_where_tiles_are_fewer_than_sms(own_gemm: None):
    calls = inspect.operators(96, BF16, 4096, ODD, activations=BF16)
    for operator in ("padded_linear", "linear_residual"):
        main = next(filter(inspect.reads_weights, inspect.recorded(90, calls[operator])))
        assert main.grid[1] > 1
        assert main.grid[0] * main.grid[1] >= configs.SM_90.sm_count
        steps = main.arguments["steps"] * main.arguments["BLOCK_K"]
        assert (main.grid[1] - 1) * steps < main.arguments["K"] <= main.grid[1] * steps


@pytest.mark.slow
@pytest.mark.parametrize("capability", [86, 90])
def test_rows_padded_to_8_values_are_enough_for_16_byte_loads(capability: int):
    # Triton alone sees only multiples of 16 values: 7160 is one of 8.
    weight = torch.empty(inspect.HIDDEN, 7160, dtype=torch.bfloat16, device="meta")[:, :ODD]
    even = torch.empty(1, 7160, dtype=torch.bfloat16, device="meta")[:, :ODD]
    for call in (
        lambda: inspect.projections.padded_linear(even, weight),
        lambda: inspect.projections.padded_linear(torch.empty(16, ODD, device="meta"), weight),
    ):
        main = inspect.recorded(capability, call)[0]
        assert inspect.usage(main, capability, inspect.WEIGHTS).weight_load == 16


@pytest.mark.slow
@pytest.mark.parametrize("capability", [86, 90])
def test_the_kv_cache_comes_in_16_byte_loads(capability: int):
    for rows in (1, 4):
        for operator in ("decode_attention", "decode_attention, GQA", "decode_attention, window"):
            main = inspect.recorded(capability, inspect.operators(rows, torch.bfloat16)[operator])[0]
            assert inspect.usage(main, capability, inspect.WEIGHTS).weight_load == 16


@pytest.mark.slow
def test_the_products_of_more_than_two_rows_run_on_the_tensor_cores():
    call = inspect.operators(16, torch.bfloat16)["linear_residual"]
    assert "mma.sync.aligned.m16n8k16" in inspect.usage(inspect.recorded(86, call)[0], 86).ptx
    assert "wgmma.mma_async.sync.aligned.m64n16k16" in inspect.usage(inspect.recorded(90, call)[0], 90).ptx
    gemv = inspect.operators(1, torch.bfloat16)["linear_residual"]
    assert "mma" not in inspect.usage(inspect.recorded(90, gemv)[0], 90).ptx


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, pytest.param(2, marks=pytest.mark.full)])
def test_streamed_weights_stay_in_the_registers_they_were_loaded_into(rows: int):
    moved = re.compile(r"convert_layout [^:]*: tensor<(\d+)x1x1024xbf16")
    assert moved.search("%a = ttg.convert_layout %b : tensor<8x1x1024xbf16, #blocked> -> ...")
    for operator in ("norm_qkv_rope", "linear_residual", "norm_gate_up", "norm_head", "linear_cross_entropy"):
        call = inspect.operators(rows, BF16, activations=BF16)[operator]
        ttgir = inspect.usage(inspect.recorded(90, call)[0], 90).ttgir
        assert "x1x1024xbf16" in ttgir
        assert not moved.search(ttgir), operator


@pytest.mark.slow
def test_no_kernel_adds_with_atomics():
    atomic = re.compile(r"^\s*(@!?%p\d+\s+)?(atom|red)\.", re.MULTILINE)
    assert atomic.search("\t@%p1 atom.global.gpu.relaxed.add.f32 %f1, [ %rd1 + 0 ], %f2;")
    for rows, activations in ((1, BF16), (64, FP32), (256, BF16)):
        for operator, call in inspect.operators(rows, BF16, activations=activations).items():
            for recorded in inspect.recorded(90, call) if "," not in operator or rows < 256 else ():
                assert not atomic.search(inspect.usage(recorded, 90).ptx)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [pytest.param(86, marks=pytest.mark.full), 90])
def test_kernels_that_start_early_wait_before_they_touch_memory(capability: int):
    # Nothing may branch around the wait either. Older architectures lack the instructions: sm_80 is checked above.
    step = re.compile(r"griddepcontrol\.\w+|\bbra\b|\b(?:ld|st|atom|red)\.global|\bcp\.async")
    dependent = set()
    for rows, activations in ((1, BF16), (64, FP32)):
        for call in inspect.operators(rows, BF16, activations=activations).values():
            for recorded in inspect.recorded(capability, call):
                used = inspect.usage(recorded, capability)
                first, second, *rest = step.findall(used.ptx)
                assert not any("griddepcontrol" in other for other in rest), used.kernel
                waits = (first, second) == ("griddepcontrol.launch_dependents", "griddepcontrol.wait")
                assert waits or "griddepcontrol" not in first + second, used.kernel
                assert options(recorded)["launch_pdl"] == waits
                dependent |= {used.kernel} if waits else set()
    assert dependent == (DEPENDENT if capability == 90 else set())


@pytest.mark.parametrize(("value", "expected"), [("", True), ("1", True), ("0", False), (None, True)])
def test_a_variable_turns_early_starts_off(value: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch):
    if value is not None:
        monkeypatch.setenv(launch.PDL_VARIABLE, value)
    call = inspect.operators(1, BF16)["linear_residual"]
    assert [recorded.arguments["PDL"] for recorded in inspect.recorded(90, call)] == [expected]
    assert [recorded.arguments["PDL"] for recorded in inspect.recorded(86, call)] == [False]
    assert not launch.dependent(torch.device("cpu"))


def test_a_wrong_value_of_the_variable_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(launch.PDL_VARIABLE, "off")
    with pytest.raises(InputError, match=r"^PYPRUNE_PDL: .*'off'"):
        inspect.recorded(90, inspect.operators(1, BF16)["linear_residual"])


@pytest.mark.slow
@pytest.mark.parametrize("capability", [86, pytest.param(90, marks=pytest.mark.full)])
def test_float32_products_are_summed_a_step_at_a_time(capability: int, own_gemm: None):
    # A product that adds to the running sum would make one chain of K additions of it, and its error as much larger.
    # Only the last step, of fewer values than the others, does: in the code it comes after the loop.
    skinny = inspect.operators(64, FP32, head_dim=64)
    wide = inspect.operators(70, FP32, 4096, ODD, activations=FP32)
    for operator, calls in (
        ("norm_qkv_rope", skinny), ("linear_residual", skinny), ("norm_gate_up", skinny), ("norm_head", skinny),
        ("norm_gate_up", wide),
    ):  # fmt: skip
        recorded = next(filter(inspect.reads_weights, inspect.recorded(capability, calls[operator])))
        weights = 2 if operator in PAIRS else 1
        expected = [True] * weights + [False] * weights
        assert products_begin_at_zero(inspect.usage(recorded, capability).ttgir) == expected, operator
    half = inspect.recorded(86, inspect.operators(64, BF16)["linear_residual"])[0]
    assert not any(products_begin_at_zero(inspect.usage(half, 86).ttgir)), "in the tensor cores' own sums"


def products_begin_at_zero(ttgir: str) -> list[bool]:
    """Of every product, whether what it adds to is the constant zero."""
    zeros = set(re.findall(r"(%\w+) = arith\.constant dense<0\.0+e\+00>", ttgir))
    return [added in zeros for added in re.findall(r"tt\.dot %[\w#]+, %[\w#]+, (%[\w#]+)", ttgir)]


def test_load_widths_are_read_from_ptx():
    wide = "ld.global.L1::evict_first.L2::cache_hint.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ], %rd2;"
    narrow = "@%p1 ld.global.L1::evict_first.L2::cache_hint.b16 { %rs1 }, [ %rd1 + 0 ], %rd2;"
    other = "ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];"
    copy = "cp.async.cg.shared.global [ %r1 + 0 ], [ %rd26 + 0 ], 0x10, %r2;"
    assert inspect.weight_load(wide) == 16
    assert inspect.weight_load(narrow) == 2
    assert inspect.weight_load(narrow + "\n" + other) == 2
    assert inspect.weight_load(narrow + "\n" + copy) == 16
    assert inspect.weight_load("ld.global.b64 { %rd1 }, [ %rd2 + 0 ];") == 0
    assert inspect.widest_load(narrow + "\n" + other) == inspect.widest_load(narrow + "\n" + copy) == 16
    assert inspect.widest_load(narrow) == 2
