"""The kernel's source run on a CPU, and its index arithmetic and layouts checked exhaustively: no GPU is needed."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cuda import tools

pytestmark = pytest.mark.skipif(tools.cxx() is None, reason="a C++ compiler is not installed")


Case = tuple[str, int, str]  # weights' type, rows, form
FORMS = ("linear", "gate_up", "qkv_rope")
CASES: list[Case] = [(w, rows, form) for w in ("f32", "bf16", "f16") for rows in (1, 2) for form in FORMS]


@pytest.fixture(scope="module")
def emulate() -> Callable[[Case], str]:
    """Runs 16 random cases of one instantiation, once; gives what was printed."""
    program = tools.build_program("skinny_linear.cpp")
    return functools.cache(lambda case: tools.output(program, *map(str, case), "16", "7"))


def test_every_element_of_every_row_is_read_once_by_aligned_loads():
    printed = tools.output(tools.build_program("row_cover.cpp"))
    assert int(re.search(r"passed (\d+) cases", printed)[1]) > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: "{}-rows{}-{}".format(*case))
def test_the_kernel_agrees_with_float64_and_reads_each_weight_once(emulate: Callable[[Case], str], case: Case):
    assert "passed 16 cases" in emulate(case)


@pytest.mark.slow
def test_the_cases_reach_every_layout(emulate: Callable[[Case], str]):
    seen = {found for case in CASES for found in re.findall(r"(split|rows|period|copies|panels)=(\d)", emulate(case))}
    wanted = {"split": "1248", "rows": "1234", "period": "1248", "copies": "12", "panels": "01"}
    assert seen == {(name, value) for name, values in wanted.items() for value in values}


MUTANTS = {  # what is right, what is not, the form that shows it
    "missing barrier after x is staged": (
        "stage_panel(panel);\n        block_barrier();",
        "stage_panel(panel);",
        "linear",
    ),
    "memory shared by the sums of two rows": ("partial + (i & 1) *", "partial + 0 *", "linear"),
    "forgotten tail": ("lane < rows.edges()", "lane < rows.head", "linear"),
    "x that is not at the row's phase": (
        "first = staged.begin * kV - cover[w].phase",
        "first = staged.begin * kV",
        "linear",
    ),
    "weights of a skipped unit": ("left[w] = skipped ? 0 : left[w]", "left[w] = left[w]", "linear"),
    "rotation the other way": ("right = right * c + left * s", "right = right * c - left * s", "qkv_rope"),
    "place in the next head": ("at.head * h.head_stride[kv]", "(at.head + 1) * h.head_stride[kv]", "qkv_rope"),
    "forgotten edge of x": ("e % kX == 0) {", "e % kX >= 0) {", "linear"),
}
MUTANTS_OF_TWO_ROWS = {
    "result whose rows are packed": ("a.out_stride + row, value + residual", "a.n + row, value + residual", "linear"),
    "x whose rows are packed": (
        "const int64_t begin = int64_t(m) * a.x_stride;\n        if",
        "const int64_t begin = int64_t(m) * a.k;\n        if",
        "linear",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*MUTANTS, *MUTANTS_OF_TWO_ROWS])
def test_the_emulator_sees_a_planted(fault: str, tmp_path: Path):
    right, wrong, form = {**MUTANTS, **MUTANTS_OF_TWO_ROWS}[fault]
    rows, others = ("2", "1") if fault in MUTANTS_OF_TWO_ROWS else ("1", "2")
    kernel = (tools.CSRC / "skinny_linear.cuh").read_text()
    assert kernel.count(right) == 1
    kernel = kernel.replace(right, wrong).replace('"skinny_linear.h"', f'"{tools.CSRC}/skinny_linear.h"')
    (tmp_path / "skinny_linear.cuh").write_text(kernel)
    program = (tools.HERE / "skinny_linear.cpp").read_text()
    program = program.replace("../../csrc/cuda/", "").replace('"emulator.h"', f'"{tools.HERE}/emulator.h"')
    program = re.sub(
        rf".*(check_all<float>|check_all<Half>|check_form<W, {others}|Form::gate_up).*", "", program
    )  # compiles faster
    (tmp_path / "program.cpp").write_text(program)
    reads = [tmp_path / "skinny_linear.cuh", tools.HERE / "emulator.h", tools.CSRC]
    compiled = tools.compiled(tmp_path / "program.cpp", ["-std=c++17", "-O0", "-w"], reads)
    with pytest.raises(AssertionError, match="FAILED"):
        tools.output(compiled, "bf16", rows, form, "60", "7")


def test_every_layout_fits_its_device():
    lines = tools.output(tools.build_program("plans.cpp")).splitlines()
    assert len(lines) == 3 * 12 * 2 * 2 * 2
    for line in lines:
        _, shared, n, k, v, rows, matrices, split, rows_per_warp, period, blocks, used = map(int, line.split())
        assert used + 1024 <= shared, line
        assert blocks * rows_per_warp * (8 // split) >= n, line
        assert period == max(1, next(p for p in (1, 2, 4, 8) if p * k % v == 0)), line
        if k * rows * (16 // v) <= 40_000:  # x fits at once, and nothing is asked for beyond it
            assert used <= (k + 2 * v) * rows * (16 // v), line
        assert matrices in (1, 2)
