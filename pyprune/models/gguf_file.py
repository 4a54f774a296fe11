"""GGUF files (llama.cpp's format), open for reading: metadata, and tensors that stay in the file till then."""

from __future__ import annotations

import mmap
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyprune import ops
from pyprune.errors import InputError, SlowTypeWarning
from pyprune.models.gguf_header import Header, HeaderError, StoredTensor
from pyprune.models.mapped_file import bytes_of, release
from pyprune.models.tensors import one_line
from pyprune.ops.schemas import GGUF_TYPES

# Tensors in these types keep their type; all others are quantised and become float32.
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_AT_ONCE = 4 << 20  # bytes of the file that are in memory at a time, beside the weights


def import_gguf(path: str | os.PathLike[str]) -> Any:
    """The package `gguf`; InputError naming the file that needs it where it is absent."""
    try:
        import gguf
    except ImportError:
        raise InputError(f"{path}: GGUF files need the gguf package; pip install gguf") from None
    return gguf


class GGUFFile:
    """An open GGUF file: its metadata as Python values, and its tensors, which stay in it until they are read.

    InputError when the `gguf` package is absent and when the file cannot be read, is cut short, or is one of several.
    """

    def __init__(self, path: Path) -> None:
        import_gguf(path)
        self.path = path
        try:
            with path.open("rb") as file:
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._header = Header(self._mapped)
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: not a whole GGUF file ({one_line(error)})") from None
        self.tensors = self._header.tensors
        self._bytes = bytes_of(self._mapped)
        parts = self.value("split.count")
        if parts not in (None, 0, 1):
            raise InputError(f"{path}: one of {parts} parts; a GGUF file in one piece is expected")

    def value(self, key: str) -> Any:
        """The metadata value, None when absent."""
        try:
            return self._header.value(key)
        except HeaderError as error:
            raise InputError(f"{self.path}: {error}") from None

    def metadata_keys(self) -> list[str]:
        return list(self._header.metadata)

    def typed_value(self, key: str) -> tuple[Any, list[Any]]:
        """The metadata value and its types in `gguf`'s terms: of the value, of an array's items."""
        from gguf import GGUFValueType

        entry = self._header.metadata[key]
        kinds = [entry.kind] if entry.item is None else [entry.kind, entry.item]
        return self.value(key), [GGUFValueType(kind) for kind in kinds]

    def own_dtype(self, name: str) -> torch.dtype:
        """The float type in which the file keeps the tensor; float32 where it is quantised."""
        return FLOATS.get(self.tensors[name].type.name, torch.float32)

    def read(self, name: str) -> Tensor:
        """The tensor in its own float type, or float32 where it is quantised: bit for bit what `gguf.dequantize` gives.

        InputError for a type that `gguf` cannot dequantise.
        """
        tensor = torch.empty(self.tensors[name].shape, dtype=self.own_dtype(name))
        self.read_into(name, tensor)
        return tensor

    def read_into(self, name: str, out: Tensor) -> None:
        """Write the tensor's values, rounded once, to `out`: on the CPU, of its shape, or with its rows in order under
        more dimensions. The file's pages are let go as they have been read. InputError as `read`.
        """
        stored = self.tensors[name]
        if out.shape[-1] != stored.shape[-1]:  # a vector in another order
            out.copy_(self.read(name).view(out.shape))
            return
        if out.dim() == 1:
            out = out.unsqueeze(0)
        row_bytes = stored.size // max(1, len(out))
        step = max(1, _AT_ONCE // max(1, row_bytes))
        for row in range(0, len(out), step):
            part = out[row : row + step]
            begin = stored.offset + row * row_bytes
            end = begin + len(part) * row_bytes
            self._decode(stored, self._bytes[begin:end], part)
            release(self._mapped, begin, end)

    def _decode(self, stored: StoredTensor, data: Tensor, out: Tensor) -> None:
        dtype = FLOATS.get(stored.type.name)
        if dtype is not None:
            if stored.offset % dtype.itemsize:
                data = data.clone()
            out.copy_(data.view(dtype).view(out.shape))
        elif stored.type in GGUF_TYPES:
            ops.dequantize_gguf(data, int(stored.type), out)
        else:
            try:
                ops.reference.dequantize_gguf(data, int(stored.type), out)
            except NotImplementedError:
                raise InputError(
                    f"{self.path}: tensor {stored.name} is of type {stored.type.name}, which gguf cannot dequantise"
                ) from None

    def warn_of_slow_types(self) -> None:
        """Say once which types the C++ kernels do not dequantise (SlowTypeWarning), where there are any."""
        kernel_types = GGUF_TYPES if ops.native.load() else ()
        types = {tensor.type for tensor in self.tensors.values()}
        slow = sorted(kind.name for kind in types if kind.name not in FLOATS and kind not in kernel_types)
        if slow:
            warnings.warn(
                f"{self.path}: {', '.join(slow)}: dequantised by the gguf package, in NumPy, which takes longer: "
                + ("the C++ library has no kernel for it" if kernel_types else "the C++ library is not in use"),
                SlowTypeWarning,
                stacklevel=5,
            )
