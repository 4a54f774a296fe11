"""GPUs after the H100 get the CUDA library as PTX of compute_80: what it becomes for sm_100 and sm_120."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.cuda import tools

pytestmark = [tools.needs_library, tools.needs_disassembler]
THREADS, BLOCKS = 256, 2


@pytest.fixture(scope="module")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the library carries for them."""
    text = tools.output(tools.cuobjdump() or "", "-ptx", tools.library())
    target = tmp_path_factory.mktemp("ptx") / "skinny_linear.ptx"
    target.write_text(text[text.index(".version") :].partition("\nFatbin ")[0])
    return target


@pytest.mark.slow
@pytest.mark.parametrize("arch", [pytest.param("sm_100", marks=pytest.mark.full), "sm_120"])
def test_nothing_spills_and_two_blocks_fit_a_processor(ptx: Path, tmp_path: Path, arch: str):
    ptxas = shutil.which("ptxas", path=str(Path(str(tools.nvcc())).resolve().parent))
    assert ptxas is not None
    if arch not in tools.output(ptxas, "--help"):
        pytest.skip(f"this ptxas does not know {arch}")
    report = tools.output(ptxas, f"-arch={arch}", "-v", ptx, "-o", tmp_path / "kernel.cubin")
    used = [int(count) for count in re.findall(r"Used (\d+) registers", report)]
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(used) == len(spills) == 18  # three dtypes, one and two rows, three forms
    assert set(spills) == {("0", "0", "0")}
    assert max(used) * THREADS * BLOCKS <= 65536
