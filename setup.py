"""Builds the native CPU library with CMake and ninja; everything else is in pyproject.toml.

The build uses the torch that is installed, so it runs without isolation: pip install --no-build-isolation -e .
Without a C++ compiler the package installs without its kernels and says so; PYPRUNE_NATIVE=0 leaves them out.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
LIBRARY = "_cpu.so"


def torch_folder() -> Path:
    """The installed torch package (not imported: only its headers and libraries are needed)."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        sys.exit(
            "pyprune: no torch in this build's environment. The kernels are built against the torch that is installed: "
            "pip install torch==2.13.0 setuptools cmake ninja, then pip install --no-build-isolation -e ."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def tool(name: str) -> str | None:
    """`name` from the PATH, or from the PyPI package of that name, whose folder need not be on the PATH."""
    found = shutil.which(name)
    if found is None and (spec := importlib.util.find_spec(name)) is not None:
        module = importlib.import_module(name)
        folder = getattr(module, "CMAKE_BIN_DIR", None) or getattr(module, "BIN_DIR", None)
        found = shutil.which(name, path=folder) if folder and spec else None
    return found


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")


class BuildWithCMake(build_ext):
    """Puts the library beside the package: in the source tree for an editable install, else in the build folder."""

    def run(self) -> None:
        if os.environ.get("PYPRUNE_NATIVE") == "0":
            print("pyprune: PYPRUNE_NATIVE=0, no kernels are built")
            return
        missing = [name for name, found in (("a C++ compiler", compiler()), ("cmake", tool("cmake"))) if not found]
        if missing:
            print(
                f"pyprune: WARNING: {' and '.join(missing)} not found, so the kernels are not built and plain PyTorch "
                "runs instead, slowly. Install g++ (and: pip install cmake ninja), then install pyprune again.",
                file=sys.stderr,
            )
            return
        in_place = self.inplace or getattr(self, "editable_mode", False)
        target = HERE / "pyprune" if in_place else Path(self.build_lib).resolve() / "pyprune"
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        cmake, ninja = tool("cmake"), tool("ninja")
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        configure = [cmake, *generator, "-S", HERE, "-B", build, f"-DPYPRUNE_TORCH={torch_folder()}"]
        subprocess.run([*configure, f"-DCMAKE_CXX_COMPILER={compiler()}"], check=True)
        subprocess.run([cmake, "--build", build], check=True)
        # Renamed into place, so that a process that has the old library loaded keeps it.
        shutil.copyfile(build / LIBRARY, target / f"{LIBRARY}.part")
        os.replace(target / f"{LIBRARY}.part", target / LIBRARY)

    def get_outputs(self) -> list[str]:
        library = Path(self.build_lib) / "pyprune" / LIBRARY
        return [str(library)] if library.exists() else []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class PlatformWheel(bdist_wheel):
    """The library does not link Python: one wheel for a platform serves every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    packages=[
        "pyprune",
        *(f"pyprune.{room}" for room in ("models", "models.families", "ops", "pruning", "runtime", "scoring", "study")),
        "pyprune.triton_kernels",
    ],
    package_dir={"pyprune": "pyprune", "pyprune.triton_kernels": "triton_kernels"},
    ext_modules=[Extension("pyprune._cpu", sources=[])],
    cmdclass={"build_ext": BuildWithCMake, "bdist_wheel": PlatformWheel},
)
