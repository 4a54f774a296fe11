"""The file of what `pyprune tune` has measured, and which of its entries holds for a kernel that is launched.

The file is $PYPRUNE_TUNING, else pyprune/tuning.json in the user's cache directory. Without it the fixed table holds.
It has entries of any number of GPUs; one holds where GPU, Triton version, operator, dtype and class of shapes agree.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pyprune.errors import InputError
from pyprune.files import read_json, user_cache, write_json
from pyprune.triton_kernels.candidates import candidates
from pyprune.triton_kernels.configs import Config, Shape, nearest

FORMAT = "pyprune-tuning/2"
OLDER_FORMATS = ("pyprune-tuning/1",)  # configurations under other names
VARIABLE = "PYPRUNE_TUNING"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Machine:
    """What a measurement depends on: the GPU's name, its compute capability (90 is 9.0), the version of Triton."""

    gpu: str
    capability: int
    triton: str


@dataclass(frozen=True)
class Key:
    """What a configuration is kept for."""

    machine: Machine
    operator: str
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Tuned:
    """The quickest configuration, its median seconds and those of the fixed table's."""

    config: Config
    seconds: float
    fixed_seconds: float


Tuning = Mapping[Key, Tuned]

_loaded: Tuning = {}


def location() -> Path:
    """The file that is read, whether or not it is there."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else user_cache("tuning.json")


def load() -> None:
    """From now on launches take what the file holds for this machine. InputError for a file that is not sound."""
    global _loaded
    path = location()
    _loaded = read(path) if path.exists() else {}


def chosen(device: torch.device, operator: str, dtype: torch.dtype, shape: Shape) -> Config | None:
    """The loaded configuration for a launch on a CUDA device; None where there is none."""
    if not _loaded:
        return None
    gpu = machine(torch.cuda.current_device() if device.index is None else device.index)
    tuned = _loaded.get(Key(gpu, operator, DTYPE_NAMES[dtype], shape))
    return None if tuned is None else tuned.config


@functools.cache
def machine(index: int) -> Machine:
    """The CUDA device of this number, and the Triton that is installed."""
    import triton

    properties = torch.cuda.get_device_properties(index)
    return Machine(properties.name, 10 * properties.major + properties.minor, triton.__version__)


def report() -> dict[str, object]:
    """The file that is read and how many configurations were taken from it."""
    return {"file": str(location()), "loaded": len(_loaded)}


def write(path: str | os.PathLike[str], tuning: Tuning) -> None:
    """Write the file, whole or not at all."""
    write_json(path, to_json(tuning))


def to_json(tuning: Tuning) -> dict[str, Any]:
    """The file's contents."""
    return {"format": FORMAT, "entries": [_entry(key, tuned) for key, tuned in tuning.items()]}


def read(path: str | os.PathLike[str]) -> Tuning:
    """What a file holds. InputError naming the file for an older format, and the entry too for anything that `write`
    would not have written."""
    expected = f"a file that `pyprune tune` wrote is expected (remove it, or name another in {VARIABLE})"
    data = read_json(path)
    if isinstance(data, dict) and data.get("format") in OLDER_FORMATS:
        raise InputError(f"{path}: is of the older format {data['format']}; remove it and run `pyprune tune` again")
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("entries"), list):
        raise InputError(f"{path}: is not of format {FORMAT}; {expected}")
    tuning: dict[Key, Tuned] = {}
    for number, entry in enumerate(data["entries"], start=1):
        try:
            key, tuned = _checked(entry)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: entry {number}: {error}; {expected}") from None
        tuning[key] = tuned
    return tuning


def _entry(key: Key, tuned: Tuned) -> dict[str, Any]:
    return {
        "gpu": key.machine.gpu,
        "compute_capability": key.machine.capability,
        "triton": key.machine.triton,
        "operator": key.operator,
        "dtype": key.dtype,
        "shape": asdict(key.shape),
        "config": asdict(tuned.config),
        "seconds": tuned.seconds,
        "fixed_seconds": tuned.fixed_seconds,
    }


def _checked(entry: Any) -> tuple[Key, Tuned]:
    """The entry as data, its configuration one of the candidates, so that nothing untried is ever launched."""
    if not isinstance(entry, dict):
        raise ValueError("not an object")
    for name in ("gpu", "triton", "operator", "dtype"):
        if not isinstance(entry[name], str):
            raise ValueError(f"{name}: a string is expected, not {entry[name]!r}")
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"dtype: one of {', '.join(DTYPES)} is expected, not {entry['dtype']}")
    for name in ("seconds", "fixed_seconds"):
        if not isinstance(entry[name], float) or not 0 < entry[name] < math.inf:
            raise ValueError(f"{name}: a positive number is expected, not {entry[name]!r}")
    capability = _positive(entry["compute_capability"], "compute_capability")
    sizes = {name: _positive(value, name) for name, value in dict(entry["shape"]).items()}
    shape, dtype = Shape(**sizes), DTYPES[entry["dtype"]]
    tried = candidates(entry["operator"], dtype, shape, nearest(capability))
    config = {_as_tuple(asdict(tile)): tile for tile in tried}.get(_as_tuple(dict(entry["config"])))
    if config is None:
        raise ValueError(f"config: {entry['config']} is not one of those that this version tries")
    key = Key(Machine(entry["gpu"], capability, entry["triton"]), entry["operator"], entry["dtype"], shape)
    return key, Tuned(config, entry["seconds"], entry["fixed_seconds"])


def _positive(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: a positive whole number is expected, not {value!r}")
    return value


def _as_tuple(fields: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Fields by name, told apart by type too: to Python 4, 4.0 and True are equal."""
    return tuple(sorted((name, repr(value)) for name, value in fields.items()))
