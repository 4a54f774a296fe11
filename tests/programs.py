"""What the tests compile, compiled once and kept under `build/` by the content of what was compiled.

The processes that share the tests wait for whichever of them came first.
"""

from __future__ import annotations

import functools
import hashlib
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "build" / "test-programs"


@functools.cache
def version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout


def made_once(name: str, settings: Iterable[object], reads: Iterable[Path], make: Callable[[Path], None]) -> Path:
    """The path that `make` filled, for these settings and these contents of the files and folders `reads`.

    `settings` must hold all that else decides what comes out: the compiler's version and its flags.
    """
    digest = hashlib.sha256(repr([name, *map(str, settings)]).encode())
    for place in reads:
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if file.is_file():
                digest.update(f"\0{file.relative_to(place)}\0".encode() + file.read_bytes())
    target = PROGRAMS / f"{name}-{digest.hexdigest()[:20]}"
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            begun = target.with_suffix(".begun")
            make(begun)
            begun.rename(target)
    return target
