"""The AMX kernels, emulated anywhere; their machine code where the rest of it runs, trapped where there is no AMX."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyprune.ops import native
from tests.cuda.tools import ROOT, compiled, cxx, output

HERE = Path(__file__).resolve().parent
KERNELS = ROOT / "csrc" / "cpu"
EMULATED = ["-include", HERE / "amx_emulator_intrinsics.h", "-Wno-psabi"]

pytestmark = pytest.mark.skipif(cxx() is None, reason="a C++ compiler is not installed")


def tile_flags() -> list[str]:
    """The flags that CMakeLists.txt gives the amx table."""
    found = dict(re.findall(r'set\(ISA_(\w+) "([^"]*)"\)', (ROOT / "CMakeLists.txt").read_text()))
    flags = found["amx"]
    while "${" in flags:
        flags = re.sub(r"\$\{ISA_(\w+)\}", lambda name: found[name[1]], flags)
    return flags.split()


def compiler_knows_tiles() -> bool:
    command = [cxx() or "", *tile_flags(), "-x", "c++", "-fsyntax-only", "/dev/null"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def kernels_object(*flags: str | Path, folder: Path = KERNELS) -> Path:
    """The kernels' source in a folder, compiled."""
    emulators = [HERE / "amx_emulator.h", HERE / "amx_emulator_intrinsics.h"]
    return compiled(folder / "kernels.cpp", ["-std=gnu++17", *flags, "-c"], [folder, *emulators])


def linked(program: Path, *objects: Path) -> Path:
    output(cxx() or "", *objects, "-o", program)
    return program


@pytest.fixture(scope="module")
def cases() -> Path:
    flags = ["-std=gnu++17", "-O1", "-Wall", "-Wextra", "-c"]
    return compiled(HERE / "amx_emulator_kernels.cpp", flags, [HERE / "amx_emulator.h", KERNELS])


@pytest.fixture(scope="module")
def build(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | Path], Path]:
    """Builds the cases around the kernels' source in a folder, its tile instructions emulated."""

    def built(optimised: str, folder: Path = KERNELS) -> Path:
        home = tmp_path_factory.mktemp("emulated")
        kernels = kernels_object(optimised, "-DPYPRUNE_ISA=amx", *EMULATED, folder=folder)
        return linked(home / "emulated", cases, kernels)

    return built


@pytest.fixture(scope="module")
def emulated(build: Callable[..., Path]) -> str:
    return output(build("-O1"))


@pytest.mark.slow
def test_every_product_agrees_with_float64_and_has_the_same_bits_in_any_batch(emulated: str):
    assert int(re.search(r"passed (\d+) cases", emulated)[1]) > 300


FAULTS = {
    "read beyond the end of a row": ("whole = k / kDepth,", "whole = (k + 1) / kDepth,"),
    "read of rows that are not there": ("configure(Shapes(height, x.last))", "configure(Shapes(kRows, x.last))"),
    "forgotten end of a row": ("if (left) {", "if (left > 1) {"),
    "place in a narrow group": ("(first * chunks(n) + index * columns)", "(first * chunks(n) + index * kRows)"),
    "sum that is not cleared": ("  _tile_zero(3);\n", ""),
    "group that overwrites another": ("_tile_stored(1, sums, kRows * 4);", "_tile_stored(0, sums, kRows * 4);"),
    "tile that is left in use": ("  _tile_release();\n", ""),
    "weight that is read twice": ("kTogether = kGroups * kRows;", "kTogether = kRows;"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_emulator_sees_a_planted(fault: str, build: Callable[..., Path], tmp_path: Path):
    right, wrong = FAULTS[fault]
    folder = Path(shutil.copytree(KERNELS, tmp_path / "cpu"))
    source = (folder / "amx.h").read_text()
    assert source.count(right) == 1
    (folder / "amx.h").write_text(source.replace(right, wrong))
    done = subprocess.run([build("-O0", folder)], capture_output=True, text=True, check=False)
    assert done.returncode < 0 or "FAILED" in done.stdout, "the fault went unseen"


def test_tiles_are_compiled_where_the_compiler_knows_them():
    if native.selected_isa() is None:
        pytest.skip("the CPU library is not loaded")
    if not compiler_knows_tiles():
        pytest.skip("the compiler does not know AMX")
    assert "amx" in native.compiled_isas()
    if shutil.which("objdump"):
        assert "tdpbf16ps" in output("objdump", "-d", native.LIBRARY_PATH)


def test_every_instruction_set_has_been_checked_on_some_processor():
    assert sorted(native.CHECKED_ON) == sorted(native.ISAS)


@pytest.fixture(scope="module")
def machine_code() -> Path:
    if not (platform.system() == "Linux" and platform.machine() == "x86_64" and compiler_knows_tiles()):
        pytest.skip("x86-64 Linux and a compiler that knows AMX are expected")
    if "avx512_bf16" not in native.runnable_isas():
        pytest.skip("this processor lacks AVX-512-BF16, which the kernels use beside the tiles")
    if "amx" not in native.runnable_isas() and "amx_tile" in Path("/proc/cpuinfo").read_text():
        pytest.skip("the system keeps back the processor's tile registers: its instructions may trap or not")
    return kernels_object("-O3", "-w", "-DPYPRUNE_ISA=amx", *tile_flags())


@pytest.mark.slow
def test_the_machine_code_gives_the_emulated_bits(machine_code: Path, cases: Path, emulated: str, tmp_path: Path):
    """Without AMX every tile instruction traps, and what it would do is emulated; with AMX the processor does it."""
    if "amx" in native.runnable_isas():
        assert output(linked(tmp_path / "real", cases, machine_code), "hardware") == emulated
    else:
        flags = ["-std=gnu++17", "-O1", "-Wall", "-Wextra", "-c"]
        traps = compiled(HERE / "amx_emulator_traps.cpp", flags, [HERE / "amx_emulator.h"])
        assert output(linked(tmp_path / "trapped", cases, machine_code, traps)) == emulated
