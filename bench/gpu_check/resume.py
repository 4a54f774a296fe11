"""Going on from the files of earlier machines: what they have done is not done again, and each part says on which."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu_check.settings import ROOT
from pyprune.errors import InputError
from pyprune.files import read_json

FORMAT = "pyprune-gpu-check/2"
CODE = ("pyprune", "triton_kernels", "csrc", "bench/gpu_check", "bench/peers")
SUFFIXES = {".py", ".csv", ".cpp", ".h", ".cu", ".cuh", ".cmake"}
RANKS = ("skipped", "failed", "stopped", "done")
"""Of two records of a part the one that says more is kept."""


@dataclass
class Earlier:
    """Machines and parts so far. A part's `machine` is a place in `machines`."""

    machines: list[dict[str, Any]] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)
    seed: int | None = None

    def machine(self, record: dict[str, Any]) -> int:
        """The place of this machine with this code, added where it is new."""
        for place, machine in enumerate(self.machines):
            if (machine["id"], machine["code"]) == (record["id"], record["code"]):
                machine.update({name: value for name, value in record.items() if value is not None})
                return place
        self.machines.append(dict(record))
        return len(self.machines) - 1

    def add(self, part: dict[str, Any]) -> None:
        """Keep the part's record, in place of one of the same part that says no more."""
        for place, kept in enumerate(self.parts):
            same_machine = kept["machine"] == part["machine"] or not part.get("everywhere")
            if kept["name"] == part["name"] and same_machine:
                if RANKS.index(part["status"]) >= RANKS.index(kept["status"]):
                    self.parts[place] = part
                return
        self.parts.append(part)

    def done(self, name: str, machine: int | None = None) -> bool:
        """Whether the part came to its end, on this machine where one is named."""
        return any(
            part["name"] == name and part["status"] == "done" and machine in (None, part["machine"])
            for part in self.parts
        )


def earlier(files: Sequence[str], current: dict[str, Any], dry_run: bool, force: bool) -> Earlier:
    """What the files hold together, the first file first. InputError for one that is no result of this check, of a dry
    run where this is none (or the reverse), and, unless forced, of other code than `here`."""
    collected = Earlier()
    for file in files:
        data = read_json(Path(file))
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            shown = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise InputError(f"--resume {file}: its format is {shown!r}; {FORMAT!r} is expected")
        if data["dry_run"] != dry_run:
            raise InputError(f"--resume {file}: is of {'a' if data['dry_run'] else 'no'} dry run, and this is another")
        for machine in data["machines"]:
            if machine["code"] != current["code"] and not force:
                raise InputError(
                    f"--resume {file}: was made by other code (commit {machine['commit'] or 'unknown'}, here "
                    f"{current['commit'] or 'unknown'}); the same checkout is expected, or --force-resume"
                )
        places = [collected.machine(machine) for machine in data["machines"]]
        for part in data["parts"]:
            collected.add({**part, "machine": places[part["machine"]]})
        collected.seed = data["seed"] if collected.seed is None else collected.seed
    return collected


def this_machine(commit: str | None) -> dict[str, Any]:
    """`id`: the same for two runs since one start of a machine; `code`: of the files that the check runs."""
    started = Path("/proc/sys/kernel/random/boot_id")
    name = started.read_text().strip() if started.is_file() else f"{platform.node()} {os.stat('/proc').st_ctime}"
    return {"id": _digest([name.encode()])[:12], "commit": commit, "code": code_digest()}


def code_digest(root: Path = ROOT) -> str:
    """SHA-256 over the names and bytes of the code, so that it is known where there is no .git."""
    files = (path for folder in CODE for path in (root / folder).rglob("*") if path.suffix in SUFFIXES)
    pieces: list[bytes] = []
    for path in sorted(files):
        pieces += [str(path.relative_to(root)).encode(), path.read_bytes()]
    return _digest(pieces)[:16]


def _digest(pieces: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for piece in pieces:
        total.update(len(piece).to_bytes(8, "little") + piece)
    return total.hexdigest()
