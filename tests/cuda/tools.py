"""The compilers and the disassembler that the CUDA tests use, where they are installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from tests.programs import ROOT, made_once, version

CSRC = ROOT / "csrc" / "cuda"
HERE = Path(__file__).resolve().parent


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    return Path(next(iter(spec.submodule_search_locations or ())))


def nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def beside_python(name: str) -> str | None:
    """As setup.py looks for CMake and Ninja."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def cuobjdump() -> str | None:
    """From the CUDA toolkit, else the one that Triton's package carries."""
    folders = [os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin"]
    if (spec := importlib.util.find_spec("triton")) is not None:
        folders += [f"{folder}/backends/nvidia/bin" for folder in spec.submodule_search_locations or ()]
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=os.pathsep.join(folders))


def disassembler_folder() -> str:
    """cuobjdump calls nvdisasm, which lies beside it."""
    found = cuobjdump()
    return str(Path(found).parent) if found else ""


def cxx() -> str | None:
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def output(*command: str | Path) -> str:
    """What a command prints; the test fails with it where the command does."""
    path = os.pathsep.join(filter(None, (os.environ.get("PATH", ""), disassembler_folder())))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def compiled(source: Path, flags: Sequence[str | Path], reads: Iterable[Path]) -> Path:
    """A program, or with `-c` an object; `reads`: whatever the source includes of ours."""
    compiler = cxx()
    assert compiler is not None

    def make(target: Path) -> None:
        output(compiler, *flags, source, "-o", target)

    return made_once(source.stem, [version(compiler), *flags], [source, *reads], make)


def library() -> Path:
    """The CUDA library as an installation builds it, without warnings, against whatever torch is here.

    Where ccache is CMake's launcher and a wheel of these sources was built before, nvcc does not run again.
    """
    options = ["-DPYPRUNE_CUDA=1", f"-DPYPRUNE_TORCH={torch_folder()}", f"-DPYPRUNE_NVCC={nvcc()}"]

    def make(target: Path) -> None:
        # As deep in the folder as where setup.py builds: ccache then sees the same paths, relative to it.
        folder = ROOT / "build" / "cuda-of-tests"
        shutil.rmtree(folder, ignore_errors=True)
        cmake, ninja = beside_python("cmake") or "", beside_python("ninja")
        output(cmake, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-S", ROOT, "-B", folder, *options)
        printed = output(cmake, "--build", folder, "--target", "pyprune_cuda")
        assert "warning" not in printed, printed
        (folder / "_cuda.so").rename(target)
        shutil.rmtree(folder)

    settings = [version(nvcc() or ""), version(cxx() or ""), *options]
    ours = [ROOT / place for place in ("CMakeLists.txt", "csrc", "pyprune/ops/schemas.py", "pyprune/ops/operators")]
    return made_once("cuda_library", settings, [*ours, torch_folder() / "version.py"], make)


_TOOLS = {"nvcc": nvcc(), "cmake": beside_python("cmake"), "ninja": beside_python("ninja"), "C++": cxx()}
_MISSING = [name for name, path in _TOOLS.items() if path is None]
needs_library = pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}")
needs_disassembler = pytest.mark.skipif(
    cuobjdump() is None, reason="cuobjdump is not installed (Triton's package carries one)"
)


def build_program(source: str) -> Path:
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    return compiled(HERE / source, flags, [HERE / "emulator.h", CSRC])
