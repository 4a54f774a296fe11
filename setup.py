"""Builds the native libraries with CMake and ninja; everything else is in pyproject.toml.

The build needs the headers of an installed torch, any from 2.10 on: that of the build's own environment, else that of
the environment which pip installs into. Without a C++ compiler the package installs without its kernels and says so;
PYPRUNE_NATIVE=0 leaves them out.
PYPRUNE_CUDA=auto|0|1: the CUDA library is built where nvcc is there and the installed torch has CUDA (auto), never (0),
or regardless (1: for a wheel, whatever the torch here; it serves GPUs under a torch with CUDA).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
SCHEMAS = runpy.run_path(str(HERE / "pyprune" / "ops" / "schemas.py"))["digest"]()
LIBRARY = f"_cpu_{SCHEMAS}.so"
CUDA_LIBRARY = f"_cuda_{SCHEMAS}.so"
CUDA_CHOICES = ("auto", "0", "1")
OLDEST_TORCH = (2, 10)
FIND_TORCH = (
    "import importlib.util as u; spec = u.find_spec('torch'); print(spec.submodule_search_locations[0] if spec else '')"
)


def torch_folder() -> Path:
    """The installed torch package (not imported: only its headers and libraries are needed).

    pip's isolated build hides it by what PYTHONPATH names; an interpreter that ignores that (-E) looks past it.
    """
    for isolation in ((), ("-E",)):
        answer = subprocess.run(
            [sys.executable, *isolation, "-c", FIND_TORCH], capture_output=True, text=True, check=True
        )
        if folder := answer.stdout.strip():
            require_new_enough(Path(folder))
            return Path(folder)
    sys.exit(
        "pyprune: the kernels are built against an installed torch, and there is none: pip install 'torch>=2.10', then "
        "this again (builders with an environment of their own, such as uv and build, take --no-build-isolation too)"
    )


def require_new_enough(torch: Path) -> None:
    version = re.search(r"__version__ = ['\"](\d+)\.(\d+)[^'\"]*", (torch / "version.py").read_text())
    if version and tuple(map(int, version.groups())) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        sys.exit(
            f"pyprune: torch {version[1]}.{version[2]}: {oldest} or newer is expected: pip install 'torch>={oldest}'"
        )


def tool(name: str) -> str | None:
    """`name` from the PyPI package of that name, else from the PATH: a system's own CMake may be too old."""
    if importlib.util.find_spec(name) is not None:
        module = importlib.import_module(name)
        folder = getattr(module, "CMAKE_BIN_DIR", None) or getattr(module, "BIN_DIR", None)
        if folder and (found := shutil.which(name, path=folder)):
            return found
    return shutil.which(name)


def compiler() -> str | None:
    """The C++ compiler, by CMake's own rule: $CXX (which may carry a launcher), else what is installed."""
    wanted = os.environ.get("CXX")
    if wanted:
        return shutil.which(shlex.split(wanted)[0])
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def tools_of_the_build(torch: Path) -> list[Any]:
    """What decides on the libraries beside the sources: the compilers, torch's version, and what CMake is told."""
    told = ("CC", "CFLAGS", "CXX", "CXXFLAGS", "LDFLAGS", "CUDA", "NVCC", "CMAKE", "CPATH", "CPLUS", "LIBRARY_PATH")
    environment = {name: value for name, value in sorted(os.environ.items()) if name.startswith(told)}
    paths = [path for path in (compiler(), shutil.which(os.environ.get("CUDACXX", "nvcc"))) if path]
    versions = [subprocess.run([path, "--version"], capture_output=True, text=True).stdout for path in paths]
    return [paths, versions, (torch / "version.py").read_text(), environment]


def long_description() -> str:
    """The README for a package index, which does not have the repository's files: relative links lead to the
    repository that pyproject.toml names under `project.urls`, or are left out where it names none."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project.get("urls", {}).get("Repository", "").rstrip("/")
    text = re.sub(r"<!--.*?-->\n", "", text)
    if repository:
        text = re.sub(r"(!\[[^\]]*\])\((?!https?:)([^)]+)\)", rf"\1({repository}/raw/main/\2)", text)
        text = re.sub(r"(\[[^\]]*\])\((?!https?:|#)([^)]+)\)", rf"\1({repository}/blob/main/\2)", text)
        return re.sub(r'((?:src|srcset)=")(?!https?:)', rf"\1{repository}/raw/main/", text)
    text = re.sub(r"<picture>.*?</picture>\n|!\[[^\]]*\]\((?!https?:)[^)]+\)\n", "", text, flags=re.DOTALL)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]+\)", r"\1", text)


class BuildFresh(build_py):
    """Modules that an earlier build left in the build folder do not come along."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "pyprune", ignore_errors=True)
        super().run()


class BuildWithCMake(build_ext):
    """Puts the library beside the package: in the source tree for an editable install, else in the build folder."""

    # At the same place in every copy of the sources, so that ccache knows what it has compiled.
    build_folder = HERE / "build" / "cmake"

    def run(self) -> None:
        in_place = self.inplace or getattr(self, "editable_mode", False)
        target = HERE / "pyprune" if in_place else Path(self.build_lib).resolve() / "pyprune"
        target.mkdir(parents=True, exist_ok=True)
        libraries = self.build_libraries() if self.wanted() else {}
        for old in (*target.glob("_cpu*.so"), *target.glob("_cuda*.so")):
            old.unlink()  # an old library must not stay in use, whether or not there is a new one
        for name, library in libraries.items():
            shutil.copyfile(library, target / f"{name}.part")
            os.replace(target / f"{name}.part", target / name)

    def wanted(self) -> bool:
        if os.environ.get("PYPRUNE_NATIVE") == "0":
            print("pyprune: PYPRUNE_NATIVE=0, no kernels are built")
            return False
        missing = [name for name, found in (("a C++ compiler", compiler()), ("cmake", tool("cmake"))) if not found]
        if missing:
            print(
                f"pyprune: WARNING: {' and '.join(missing)} not found, so the kernels are not built and plain PyTorch "
                "runs instead, slowly. Install g++ (and: pip install cmake ninja), then install pyprune again.",
                file=sys.stderr,
            )
        return not missing

    def build_libraries(self) -> dict[str, Path]:
        """The libraries by the names they are installed under; the CUDA one is there where it was chosen."""
        cuda = os.environ.get("PYPRUNE_CUDA") or "auto"
        if cuda not in CUDA_CHOICES:
            sys.exit(f"pyprune: PYPRUNE_CUDA={cuda}: one of {', '.join(CUDA_CHOICES)} is expected")
        torch, build = torch_folder().resolve(), self.build_folder
        cmake, ninja = tool("cmake"), tool("ninja")
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        options = [f"-DPYPRUNE_TORCH={torch}", f"-DPYPRUNE_CUDA={cuda}", f"-DPython3_EXECUTABLE={sys.executable}"]
        configure = [str(word) for word in (cmake, *generator, "-S", HERE, "-B", build, *options)]
        # CMake keeps the compiler and the torch of the last time, so its folder serves only where these are the same.
        record, tools = build / "tools.json", json.dumps([configure, tools_of_the_build(torch)])
        if not record.exists() or record.read_text() != tools:
            shutil.rmtree(build, ignore_errors=True)
            build.mkdir(parents=True)
        subprocess.run(configure, check=True)
        record.write_text(tools)
        subprocess.run([cmake, "--build", build], check=True)
        built = {LIBRARY: build / "_cpu.so", CUDA_LIBRARY: build / "_cuda.so"}
        return {name: library for name, library in built.items() if library.exists()}

    def get_outputs(self) -> list[str]:
        libraries = (Path(self.build_lib) / "pyprune" / name for name in (LIBRARY, CUDA_LIBRARY))
        return [str(library) for library in libraries if library.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class PlatformWheel(bdist_wheel):
    """The library does not link Python: one wheel for a platform serves every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    long_description=long_description(),
    long_description_content_type="text/markdown",
    packages=[
        *find_packages(include=["pyprune", "pyprune.*"]),
        "pyprune.triton_kernels",
        *(f"pyprune.triton_kernels.{package}" for package in find_packages("triton_kernels")),
    ],
    package_dir={"pyprune": "pyprune", "pyprune.triton_kernels": "triton_kernels"},
    ext_modules=[Extension("pyprune._cpu", sources=[])],
    cmdclass={"build_py": BuildFresh, "build_ext": BuildWithCMake, "bdist_wheel": PlatformWheel},
)
