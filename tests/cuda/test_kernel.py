"""The kernel's source run on a CPU, and its index arithmetic and layouts checked exhaustively: no GPU is needed."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Callable

import pytest

from tests.cuda import tools
from tests.planted import CHOSEN, planted

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


# Where in the kernel, what is right there, what is wrong, and the rows and the form that show it.
FAULTS = {
    "missing barrier after x is staged": ("stage_panel(panel);\n        {};", "block_barrier()", "void()", 1, "linear"),
    "memory shared by the sums of two rows": ("partial + {} *", "(i & 1)", "0", 1, "linear"),
    "forgotten tail": ("lane < {}", "rows.edges()", "rows.head", 1, "linear"),
    "x that is not at the row's phase": ("first = staged.begin * kV - {}", "cover[w].phase", "0", 1, "linear"),
    "weights of a skipped unit": ("left[w] = {} ? 0 : left[w]", "skipped", "false", 1, "linear"),
    "rotation the other way": ("right = right * c + {} * s", "left", "-left", 1, "qkv_rope"),
    "place in the next head": ("{} * h.head_stride[kv]", "at.head", "(at.head + 1)", 1, "qkv_rope"),
    "forgotten edge of x": ("alike && {}) {{", "e % kX == 0", "e % kX >= 0", 1, "linear"),
    "result whose rows are packed": ("* {} + row, value + residual", "a.out_stride", "a.n", 2, "linear"),
    "x whose rows are packed": ("const int64_t begin = int64_t(m) * {};\n        if", "a.x_stride", "a.k", 2, "linear"),
}


@pytest.fixture(scope="module")
def with_faults(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[int, int, str], subprocess.CompletedProcess[str]]:
    """Runs 60 random cases of one instantiation for bf16, with the fault of that place in FAULTS."""
    folder = tmp_path_factory.mktemp("planted")
    kernel = planted((tools.CSRC / "skinny_linear.cuh").read_text(), FAULTS.values())
    kernel = kernel.replace('"skinny_linear.h"', f'"{tools.CSRC}/skinny_linear.h"')
    (folder / "skinny_linear.cuh").write_text(kernel)
    program = (tools.HERE / "skinny_linear.cpp").read_text()
    program = program.replace("../../csrc/cuda/", "").replace('"emulator.h"', f'"{tools.HERE}/emulator.h"')
    program = re.sub(r".*(check_all<float>|check_all<Half>|Form::gate_up).*", "", program)  # compiles faster
    (folder / "program.cpp").write_text(program)
    reads = [folder / "skinny_linear.cuh", tools.HERE / "emulator.h", tools.CSRC]
    compiled = tools.compiled(folder / "program.cpp", ["-std=c++17", "-O0", "-w"], reads)

    def run(fault: int, rows: int, form: str, cases: int = 60) -> str:
        command = [compiled, "bf16", str(rows), form, str(cases), "7"]
        environment = {**os.environ, CHOSEN: str(fault)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "form"), sorted({fault[3:] for fault in FAULTS.values()}))
def test_the_planted_faults_sleep_until_they_are_called(with_faults: Callable[..., str], rows: int, form: str):
    assert "passed 9 cases" in with_faults(len(FAULTS), rows, form, cases=9)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_emulator_sees_a_planted(fault: str, with_faults: Callable[..., str]):
    *_, rows, form = FAULTS[fault]
    assert "FAILED" in with_faults(list(FAULTS).index(fault), rows, form), "the fault went unseen"


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
