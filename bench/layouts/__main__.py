"""`python -m bench.layouts [--arch 90a] [--build DIR]`: variants of csrc/cuda/skinny_linear.h, built and run.

A variant is a copy of the sources with other constants: threads a block, 16-byte loads under way in a thread, blocks a
processor (for one matrix and for two). The first is the sources as they are. With --build the programs are only built,
which needs no GPU.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc" / "cuda"
VARIANTS: dict[str, tuple[int, int, int, int, int] | None] = {
    "as it is": None,
    "base": (256, 6, 8, 3, 2),
    "v4": (256, 4, 6, 4, 3),
    "v8": (256, 8, 8, 2, 2),
    "v8c": (256, 8, 6, 2, 3),
    "t128": (128, 6, 8, 6, 4),
    "t128b": (128, 8, 6, 5, 6),
    "t512": (512, 4, 6, 2, 1),
}
"""By name: threads, loads for one matrix and for two, blocks for one matrix and for two."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.layouts", description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="90a", help="compute capability to build for (default: 90a)")
    parser.add_argument("--build", metavar="DIR", help="only build the programs, into this directory")
    options = parser.parse_args(argv)
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        print("layouts: there is no nvcc on the PATH", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.build or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name, constants in VARIANTS.items():
            program = build(nvcc, options.arch, folder / name.replace(" ", "-"), constants)
            if not options.build:
                print(subprocess.run([program, name], capture_output=True, text=True, check=True).stdout, end="")
    return 0


def build(nvcc: str, arch: str, folder: Path, constants: tuple[int, int, int, int, int] | None) -> Path:
    """The program for one variant, from a copy of the sources in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in [*CSRC.glob("*.h"), *CSRC.glob("*.cuh"), HERE / "layouts.cu"]:
        shutil.copy(source, folder)
    if constants is not None:
        header = folder / "skinny_linear.h"
        header.write_text(with_constants(header.read_text(), constants))
    program = folder / "layouts"
    code = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    subprocess.run([nvcc, "-std=c++17", "-O3", code, str(folder / "layouts.cu"), "-o", str(program)], check=True)
    return program


def with_constants(header: str, constants: tuple[int, int, int, int, int]) -> str:
    """skinny_linear.h with other constants; ValueError where it no longer has the lines that hold them."""
    threads, one, two, blocks_one, blocks_two = constants
    for pattern, text in (
        (r"(constexpr int kThreads = )\d+;", rf"\g<1>{threads};"),
        (r"(loads_in_flight\(int matrices\) \{) .*? \}", rf"\g<1> return matrices == 1 ? {one} : {two}; }}"),
        (
            r"(blocks_per_processor\(int matrices, int rows, int element_size\) \{)[^}]*\}",
            rf"\g<1> (void)rows, (void)element_size; return matrices == 1 ? {blocks_one} : {blocks_two}; }}",
        ),
    ):
        header, count = re.subn(pattern, text, header)
        if count != 1:
            raise ValueError(f"skinny_linear.h: {pattern} is there {count} times, once is expected")
    return header


if __name__ == "__main__":
    sys.exit(main())
