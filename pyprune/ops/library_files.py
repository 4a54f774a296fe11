"""The native libraries' files: which belong to this pyprune, and what is wrong with one, said before it is loaded.

A library registers its kernels while it is loaded, so that one built for other schemas must be refused by what stands
in its file: the build writes a record into it (csrc/record.cpp.in).
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

from pyprune.ops.schemas import digest

FOLDER = Path(__file__).resolve().parents[1]
RECORD = re.compile(rb"pyprune library: ([^;\0]*);")
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}


def path(kind: str) -> Path:
    """Where the library of this kind, `cpu` or `cuda`, lies if it was built for this pyprune's schemas."""
    return FOLDER / f"_{kind}_{digest()}.so"


def record(library: Path) -> dict[str, str]:
    """What the build wrote into a library: `digest`, and for CUDA `targets` and `toolkit`; empty if
    nothing was."""
    written = RECORD.search(library.read_bytes())
    return dict(field.split("=", 1) for field in written[1].decode().split()) if written else {}


def problem(library: Path) -> str | None:
    """Why this library may not be loaded, in one line; None where nothing in its file speaks against it."""
    if not library.exists():
        kind = library.stem.split("_")[1]
        other_libraries = sorted(file.name for file in library.parent.glob(f"_{kind}*.so"))
        if other_libraries:
            verb = "was" if len(other_libraries) == 1 else "were"
            return f"{', '.join(other_libraries)} {verb} built for another pyprune, {library.name} is expected"
        return f"{library.name} was not built"
    if machine := _other_machine(library):
        return f"{library.name} was built for {machine}, and this machine is {platform.machine()}"
    if record(library).get("digest") != digest():
        return f"{library.name} was built for another pyprune: its digest is not {digest()}"
    return None


def _other_machine(library: Path) -> str | None:
    """The architecture of an ELF file where it is another one than this machine's."""
    with library.open("rb") as file:
        header = file.read(20)
    this_machine = ELF_MACHINES.get(platform.machine())
    if header[:4] != b"\x7fELF" or this_machine is None:
        return None
    machine = int.from_bytes(header[18:20], "little")
    names = {number: name for name, number in ELF_MACHINES.items()}
    return None if machine == this_machine else names.get(machine, f"another processor (ELF machine {machine})")


def cuda_targets(library: Path) -> str | None:
    """The GPUs that a CUDA library has code for and the toolkit it was built with, in words; None without a library."""
    if problem(library):
        return None
    built = record(library)
    targets = built["targets"].split(",")
    names = [f"sm_{target.removesuffix('-real')}" for target in targets]
    names += [f"later GPUs by PTX of compute_{target}" for target in targets if not target.endswith("-real")]
    return f"{', '.join(names)} (CUDA {built['toolkit']})"
