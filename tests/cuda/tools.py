"""The compilers and the disassembler that the CUDA tests use, where they are installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.programs import ROOT, made_once, version

CSRC = ROOT / "csrc" / "cuda"
HERE = Path(__file__).resolve().parent


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    return Path(next(iter(spec.submodule_search_locations or ())))


def nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


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


def build_program(source: str) -> Path:
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    return compiled(HERE / source, flags, [HERE / "emulator.h", CSRC])
