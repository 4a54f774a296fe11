"""The kernel's source run on a CPU, and its index arithmetic and layouts checked exhaustively: no GPU is needed."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cuda import tools

pytestmark = pytest.mark.skipif(tools.cxx() is None, reason="a C++ compiler is not installed")


Case = tuple[str, int, int]  # weights' type, rows, matrices
CASES: list[Case] = [(w, rows, matrices) for w in ("f32", "bf16", "f16") for rows in (1, 2) for matrices in (1, 2)]


@pytest.fixture(scope="module")
def emulate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], str]:
    """Runs 16 random cases of one instantiation, once; gives what was printed."""
    program = tools.build_program("skinny_linear.cpp", tmp_path_factory.mktemp("emulation"))
    return functools.cache(lambda case: tools.output(program, *map(str, case), "16", "7"))


def test_every_element_of_every_row_is_read_once_by_aligned_loads(tmp_path: Path):
    printed = tools.output(tools.build_program("row_cover.cpp", tmp_path))
    assert int(re.search(r"passed (\d+) cases", printed)[1]) > 10_000


@pytest.mark.parametrize("case", CASES, ids=lambda case: "{}-rows{}-matrices{}".format(*case))
def test_the_kernel_agrees_with_float64_and_reads_each_weight_once(emulate: Callable[[Case], str], case: Case):
    assert "passed 16 cases" in emulate(case)


def test_the_cases_reach_every_layout(emulate: Callable[[Case], str]):
    seen = {found for case in CASES for found in re.findall(r"(split|rows|period|copies|panels)=(\d)", emulate(case))}
    wanted = {"split": "1248", "rows": "1234", "period": "1248", "copies": "12", "panels": "01"}
    assert seen == {(name, value) for name, values in wanted.items() for value in values}


MUTANTS = {
    "missing barrier after x is staged": ("stage_panel(panel);\n        block_barrier();", "stage_panel(panel);"),
    "memory shared by the sums of two rows": ("partial + (i & 1) *", "partial + 0 *"),
    "forgotten tail": ("lane < rows.edges()", "lane < rows.head"),
    "x that is not at the row's phase": ("first = staged.begin * kV - cover[w].phase", "first = staged.begin * kV"),
}


@pytest.mark.parametrize("fault", MUTANTS)
def test_the_emulator_sees_a_planted(fault: str, tmp_path: Path):
    right, wrong = MUTANTS[fault]
    kernel = (tools.CSRC / "skinny_linear.cuh").read_text()
    assert kernel.count(right) == 1
    kernel = kernel.replace(right, wrong).replace('"skinny_linear.h"', f'"{tools.CSRC}/skinny_linear.h"')
    (tmp_path / "skinny_linear.cuh").write_text(kernel)
    program = (tools.HERE / "skinny_linear.cpp").read_text()
    program = program.replace("../../csrc/cuda/", "").replace('"emulator.h"', f'"{tools.HERE}/emulator.h"')
    program = re.sub(r".*(check_all<float>|check_all<Half>|check<W, 2|check<W, 1, 2).*", "", program)  # compiles faster
    (tmp_path / "program.cpp").write_text(program)
    tools.output(tools.cxx() or "", "-std=c++17", "-O0", "-w", tmp_path / "program.cpp", "-o", tmp_path / "program")
    with pytest.raises(AssertionError, match="FAILED"):
        tools.output(tmp_path / "program", "bf16", "1", "1", "60", "7")


def test_every_layout_fits_its_device(tmp_path: Path):
    lines = tools.output(tools.build_program("plans.cpp", tmp_path)).splitlines()
    assert len(lines) == 3 * 12 * 2 * 2 * 2
    for line in lines:
        _, shared, n, k, v, rows, matrices, split, rows_per_warp, period, blocks, used = map(int, line.split())
        assert used + 1024 <= shared, line
        assert blocks * rows_per_warp * (8 // split) >= n, line
        assert period == max(1, next(p for p in (1, 2, 4, 8) if p * k % v == 0)), line
        if k * rows * (16 // v) <= 40_000:  # x fits at once, and nothing is asked for beyond it
            assert used <= (k + 2 * v) * rows * (16 // v), line
        assert matrices in (1, 2)
