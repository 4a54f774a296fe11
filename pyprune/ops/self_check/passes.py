"""Which GPUs' kernels have passed their self-check here: a file in the user's cache directory, one entry a kind of GPU.

An entry holds for the GPU's name and compute capability, the driver, torch, Triton and the kernels themselves (a digest
of the Triton kernels' sources and the CUDA library). Any other is of no use: then the check runs again.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import json
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pyprune.errors import InputError
from pyprune.files import read_json, user_cache, write_json
from pyprune.ops import library_files

FORMAT = "pyprune-gpu-self-check/1"
COMMAND = "pyprune doctor --gpu"
CUDA_LIBRARY_PATH = library_files.path("cuda")


@dataclass(frozen=True)
class Identity:
    """What a pass holds for."""

    gpu: str
    compute_capability: str
    driver: str
    torch: str
    triton: str
    kernels: str


NAMES = {
    "gpu": "GPU", "compute_capability": "compute capability", "driver": "driver", "torch": "torch", "triton": "Triton",
    "kernels": "kernels",
}  # fmt: skip


def location() -> Path:
    """The file, whether or not it is there."""
    return user_cache("gpu-self-check.json")


def identity(index: int) -> Identity:
    """The CUDA device of this number, and all that runs on it."""
    properties = torch.cuda.get_device_properties(index)
    return Identity(
        properties.name, f"{properties.major}.{properties.minor}", _driver(), torch.__version__, _triton(), digest()
    )


def digest() -> str:
    """Of the Triton kernels' sources and the CUDA library, if there is one."""
    kernels = importlib.import_module("pyprune.triton_kernels")
    sources = [path for folder in kernels.__path__ for path in Path(folder).glob("*.py")]
    library = [CUDA_LIBRARY_PATH] if CUDA_LIBRARY_PATH.exists() else []
    total = hashlib.sha256()
    for path in [*sorted(sources), *library]:
        total.update(f"{path.name} {path.stat().st_size}\n".encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:32]


def standing(current: Identity) -> tuple[str | None, str]:
    """The kernels that passed on this GPU (`cuda` or `triton`), or None and why there is no pass that holds."""
    path = location()
    if not path.exists():
        return None, "the kernels have not been checked on this GPU"
    try:
        entries = _entries(path)
    except InputError as error:
        return None, f"the record of self-checks was ignored: {error}"
    for entry in entries:
        if _identity(entry) == current:
            return entry["mode"], ""
    ours = [_identity(entry) for entry in entries if entry["gpu"] == current.gpu]
    if not ours:
        return None, "the kernels have not been checked on this GPU"
    changed = [name for name in NAMES if getattr(ours[-1], name) != getattr(current, name)]
    changes = ", ".join(
        "version of the kernels"
        if name == "kernels"
        else f"{NAMES[name]} {getattr(ours[-1], name)}, now {getattr(current, name)}"
        for name in changed
    )
    return None, f"the self-check that passed on this GPU was of another {changes}"


def keep(current: Identity, mode: str, cases: int) -> None:
    """Enter a pass, in place of older ones of the same GPU."""
    entry = {**asdict(current), "mode": mode, "cases": cases}
    _write([*_other_entries(current), {**entry, "seal": _seal(entry)}])


def forget(current: Identity) -> None:
    """Take back a pass of this GPU: its check failed, or did not come to its end."""
    if location().exists():
        _write(_other_entries(current))


def _other_entries(current: Identity) -> list[dict[str, Any]]:
    """The entries of other GPUs; none where the file is not sound."""
    try:
        return [entry for entry in _entries(location()) if entry["gpu"] != current.gpu]
    except InputError:
        return []


def _write(entries: list[dict[str, Any]]) -> None:
    write_json(location(), {"format": FORMAT, "passes": entries})


def _entries(path: Path) -> list[dict[str, Any]]:
    """What the file holds; InputError for anything that `keep` would not have written."""
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("passes"), list):
        raise InputError(f"{path}: is not of format {FORMAT}")
    for number, entry in enumerate(data["passes"], start=1):
        sound = isinstance(entry, dict) and entry.get("seal") == _seal({k: v for k, v in entry.items() if k != "seal"})
        if not sound or not {*NAMES, "mode"} <= set(entry) or entry["mode"] not in ("triton", "cuda"):
            raise InputError(f"{path}: entry {number} is not as `{COMMAND}` wrote it")
    return data["passes"]


def _identity(entry: dict[str, Any]) -> Identity:
    return Identity(**{field.name: entry[field.name] for field in fields(Identity)})


def _seal(entry: dict[str, Any]) -> str:
    """Shows a change by hand or by accident; it is no signature."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"


@functools.cache
def _driver() -> str:
    """The NVIDIA driver's version, from the driver's own library."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return "unknown"
    text = ctypes.create_string_buffer(96)
    started = library.nvmlInit_v2() == 0
    succeeded = started and library.nvmlSystemGetDriverVersion(text, len(text)) == 0
    if started:
        library.nvmlShutdown()
    return text.value.decode(errors="replace") if succeeded else "unknown"
