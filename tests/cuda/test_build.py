"""When the CUDA library is built, and what it asks of torch."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

from tests.cuda import tools

CMAKE = shutil.which("cmake")
needs_cmake = pytest.mark.skipif(CMAKE is None, reason="cmake is not on the PATH")


def choose(torch: Path, value: str | None = None, nvcc: Path | None = None) -> subprocess.CompletedProcess[str]:
    """choice.cmake on its own, for a machine with or without nvcc and a torch with or without CUDA."""
    option = [] if value is None else [f"-DPYPRUNE_CUDA={value}"]
    option.append(f"-DPYPRUNE_NVCC={nvcc if nvcc else 'PYPRUNE_NVCC-NOTFOUND'}")
    command = [CMAKE or "", *option, f"-DPYPRUNE_TORCH={torch}", "-P", tools.CSRC / "choice.cmake"]
    if nvcc is None:  # find_program looks again where it found nothing: nowhere, here
        text = (tools.CSRC / "choice.cmake").read_text()
        script = torch.parent / "choice.cmake"
        script.write_text(re.sub(r"find_program\(.*\)", "", text))
        command[-1] = script
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def cpu_torch(tmp_path: Path) -> Path:
    (tmp_path / "cpu_torch" / "lib").mkdir(parents=True)
    return tmp_path / "cpu_torch"


@pytest.fixture
def cuda_torch(tmp_path: Path) -> Path:
    library = tmp_path / "cuda_torch" / "lib" / "libtorch_cuda.so"
    library.parent.mkdir(parents=True)
    library.touch()
    return library.parents[1]


@pytest.fixture
def nvcc(tmp_path: Path) -> Path:
    (tmp_path / "nvcc").touch(mode=0o755)
    return tmp_path / "nvcc"


@needs_cmake
@pytest.mark.parametrize("value", [None, "auto"])
def test_auto_builds_where_there_is_nvcc_and_torch_has_cuda(value, cpu_torch: Path, cuda_torch: Path, nvcc: Path):
    assert f"CUDA library with {nvcc}\n" in choose(cuda_torch, value, nvcc).stdout
    assert "no CUDA library: the installed torch has no CUDA" in choose(cpu_torch, value, nvcc).stdout
    assert "no CUDA library: there is no nvcc" in choose(cuda_torch, value).stdout


@needs_cmake
def test_one_builds_regardless_and_wants_nvcc(cpu_torch: Path, nvcc: Path):
    assert f"CUDA library with {nvcc}, for a torch with CUDA: this one has none" in choose(cpu_torch, "1", nvcc).stdout
    without = choose(cpu_torch, "1")
    assert without.returncode != 0
    assert "there is no nvcc" in without.stderr


@needs_cmake
def test_zero_never_builds(cuda_torch: Path, nvcc: Path):
    assert "no CUDA library: PYPRUNE_CUDA=0" in choose(cuda_torch, "0", nvcc).stdout


@needs_cmake
@pytest.mark.parametrize("value", ["yes", "", "01", "AUTO"])
def test_any_other_value_is_refused(value: str, cuda_torch: Path, nvcc: Path):
    done = choose(cuda_torch, value, nvcc)
    assert done.returncode != 0
    assert "auto, 0 or 1 is expected" in done.stderr


def test_setup_refuses_a_wrong_value_before_it_builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    given: dict[str, dict[str, type]] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: given.update(options))
    runpy.run_path(str(tools.ROOT / "setup.py"))
    command = given["cmdclass"]["build_ext"](setuptools.Distribution())
    command.build_folder = tmp_path / "cmake"
    monkeypatch.setenv("PYPRUNE_CUDA", "maybe")
    with pytest.raises(SystemExit, match=r"PYPRUNE_CUDA=maybe: one of auto, 0, 1 is expected"):
        command.build_libraries()
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def undefined() -> set[str]:
    """Names that registration.cpp wants from elsewhere."""
    if tools.cxx() is None or shutil.which("nm") is None or tools.nvcc() is None:
        pytest.skip("a C++ compiler, nm and the CUDA toolkit's headers are needed")
    dry = tools.output(tools.nvcc() or "", "--dryrun", "-c", tools.CSRC / "skinny_linear.cu", "-o", os.devnull)
    toolkit = re.search(r"^#\$ TOP=(.*)$", dry, re.MULTILINE)
    assert toolkit, dry
    headers = ["-isystem", tools.torch_folder() / "include", "-isystem", Path(toolkit[1]) / "include"]
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden"]
    defines = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    source = tools.CSRC / "registration.cpp"
    target = tools.compiled(
        source, [*flags, *defines, *headers, "-c"], [tools.CSRC, tools.torch_folder() / "version.py"]
    )
    return {line.split()[-1] for line in tools.output("nm", "-u", target).splitlines() if line.strip()}


def test_the_library_asks_torch_for_its_stable_c_functions_alone(undefined: set[str]):
    of_torch = {name for name in undefined if re.search(r"torch|c10|3c10|2at", name)}
    assert of_torch
    assert {name for name in of_torch if not re.match(r"(aoti_)?torch_[a-z0-9_]+$", name)} == set()
    assert "aoti_torch_get_current_cuda_stream" in of_torch


def test_the_cpu_library_asks_for_no_cuda_function():
    libraries = sorted((tools.ROOT / "pyprune").glob("_cpu_*.so"))
    if not libraries or shutil.which("nm") is None:
        pytest.skip("the CPU library is not built here")
    names = tools.output("nm", "-Du", libraries[0])
    assert "aoti_torch" in names
    assert "cuda_stream" not in names


def test_importing_the_build_does_not_import_torch():
    code = (
        "import runpy, setuptools, sys\nsetuptools.setup = lambda **options: None\n"
        "runpy.run_path('setup.py')\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tools.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
