"""A safetensors file whose tensors stay in it: mapped read-only, so that they take no memory of the process's own.

safetensors' own reader for torch maps the whole file as private memory, which a limit on data counts in full.
"""

from __future__ import annotations

import json
import mmap
import warnings
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


_MOST_HEADER = 100_000_000  # bytes, as safetensors itself has it
_MOST_VALUES = (1 << 63) - 1  # of an empty tensor, were its empty dimensions 1: torch counts no further


class MappedFile:
    """The tensors of a safetensors file by name.

    OSError when it cannot be opened, ValueError when it is not whole: its header, read once, must describe tensors that
    fill the rest of the file exactly.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_MOST_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            try:
                header = json.loads(file.read(length))
            except RecursionError:
                raise ValueError("its header is nested too deeply") from None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        header.pop("__metadata__", None)
        self._start = 8 + length
        _check(header, size - self._start)
        self._entries, self._mapped = header, mapped
        self._bytes = bytes_of(mapped)

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

    def release(self, name: str) -> None:
        """Take the tensor's pages out of this process's memory; they are read anew where it is asked for again."""
        begin, end = self._entries[name]["data_offsets"]
        release(self._mapped, self._start + begin, self._start + end)


def bytes_of(mapped: mmap.mmap) -> Tensor:
    """A mapped file as a vector of bytes in its own memory."""
    with warnings.catch_warnings():  # torch warns that the memory must not be written; nobody does
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(mapped, dtype=torch.uint8)


def release(mapped: mmap.mmap, begin: int, end: int) -> None:
    """Take the pages that lie wholly in these bytes of a mapped file out of this process's memory. It goes for all who
    look at this mapping; what they read next is read from the file again."""
    begin, end = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def _check(header: dict[str, Any], size: int) -> None:
    """ValueError unless these are tensors of which one begins where another ends, from 0 to `size`."""
    places = []
    for name, entry in header.items():
        try:
            (begin, end), shape, dtype = entry["data_offsets"], entry["shape"], entry["dtype"]
            good = isinstance(shape, list) and isinstance(dtype, str)
            good = good and all(type(number) is int and number >= 0 for number in (begin, end, *shape))
            count = prod(shape) if good else 0
            good = good and (count > 0 or prod(max(number, 1) for number in shape) <= _MOST_VALUES)
        except (TypeError, KeyError, ValueError):
            good = False
        if not good:
            raise ValueError(f"tensor {name} is described by {str(entry)[:200]}")
        known = _DTYPES.get(dtype)
        if end - begin != count * known.itemsize if known is not None else end < begin:
            raise ValueError(f"tensor {name} of {dtype} and shape {shape} has {end - begin} bytes")
        places.append((begin, end, name))
    last = 0
    for begin, end, name in sorted(places):
        if begin != last:
            raise ValueError(f"tensor {name} begins at byte {begin} of the data, {last} is expected")
        last = end
    if last != size:
        raise ValueError(f"its tensors take {last} bytes, the file has {size} for them")
