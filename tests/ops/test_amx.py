"""The AMX kernels, emulated anywhere; their machine code where the rest of it runs, trapped where there is no AMX."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyprune.ops import native
from tests.cuda.tools import ROOT, compiled, cxx, output
from tests.planted import CHOSEN, planted

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
def build(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds the cases around the kernels' source in a folder, its tile instructions emulated.

    Unoptimised: the sums of a tile go in the order that the emulator gives them, whatever the compiler does."""

    def built(folder: Path = KERNELS) -> Path:
        home = tmp_path_factory.mktemp("emulated")
        kernels = kernels_object("-O0", "-DPYPRUNE_ISA=amx", *EMULATED, folder=folder)
        return linked(home / "emulated", cases, kernels)

    return built


@pytest.fixture(scope="module")
def emulated(build: Callable[..., Path]) -> str:
    return output(build())


@pytest.mark.slow
def test_every_product_agrees_with_float64_and_has_the_same_bits_in_any_batch(emulated: str):
    assert int(re.search(r"passed (\d+) cases", emulated)[1]) > 300


# Where in amx.h, what is right there, and what is wrong.
FAULTS = {
    "read beyond the end of a row": ("whole = {},", "k / kDepth", "(k + 1) / kDepth"),
    "read of rows that are not there": ("configure({});", "Shapes(height, x.last)", "Shapes(kRows, x.last)"),
    "forgotten end of a row": ("if ({}) {{", "left", "left > 1"),
    "place in a narrow group": (
        "({}) * kChunk",
        "first * chunks(n) + index * columns",
        "first * chunks(n) + index * kRows",
    ),
    "sum that is not cleared": ("  {};\n", "_tile_zero(3)", "void()"),
    "group that overwrites another": ("_tile_stored({}, sums, kRows * 4);", "1", "0"),
    "tile that is left in use": ("  {};\n", "_tile_release()", "void()"),
    "weight that is read twice": ("constexpr int64_t kTogether = {};", "kGroups * kRows", "kRows"),
}


@pytest.fixture(scope="module")
def with_faults(build: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The emulated kernels with every fault planted."""
    folder = Path(shutil.copytree(KERNELS, tmp_path_factory.mktemp("planted") / "cpu"))
    (folder / "amx.h").write_text(planted((folder / "amx.h").read_text(), FAULTS.values()))
    return build(folder)


def run_with(fault: int, program: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, CHOSEN: str(fault)}
    return subprocess.run([program], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_planted_faults_sleep_until_they_are_called(with_faults: Path, emulated: str):
    assert run_with(len(FAULTS), with_faults).stdout == emulated


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_emulator_sees_a_planted(fault: str, with_faults: Path):
    done = run_with(list(FAULTS).index(fault), with_faults)
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
