"""A safetensors file whose tensors stay in it: mapped read-only, so that they take no memory of the process's own.

safetensors' own reader for torch maps the whole file as private memory, which a limit on data counts in full.
"""

from __future__ import annotations

import json
import mmap
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class MappedFile:
    """The tensors of a safetensors file by name.

    OSError when it cannot be opened, safetensors.SafetensorError when it is not whole: the library checks the header.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, framework="np"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header.pop("__metadata__", None)
        self._entries, self._start = header, 8 + length
        with warnings.catch_warnings():  # torch warns that the memory must not be written; nobody does
            warnings.simplefilter("ignore", UserWarning)
            self._bytes = torch.frombuffer(mapped, dtype=torch.uint8)

    def names(self) -> Iterable[str]:
        return self._entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entries[name]["shape"])

    def read(self, name: str) -> Tensor:
        """The tensor in the file's own memory; a copy where the file does not align it to its element size."""
        entry = self._entries[name]
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(f"dtype {entry['dtype']} is not known")
        begin, end = (self._start + offset for offset in entry["data_offsets"])
        part = self._bytes[begin:end]
        if begin % dtype.itemsize:
            part = part.clone()
        return part.view(dtype).view(entry["shape"])
