"""What a GGUF file says of itself: metadata, and where its tensors lie. Each number is checked against the file's size.

Ours, because `gguf.GGUFReader` makes a NumPy view of each of a tokenizer's 150,000 entries (seconds), and trusts counts
and lengths: a few wrong bytes make it take all memory.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from typing import Any

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUFValueType of one number, as `struct` spells it."""
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
_VERSIONS = (2, 3)


class HeaderError(ValueError):
    """What is wrong with a file, in a few words."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a GGUF file: `type` is a `gguf.GGMLQuantizationType`, `shape` is in torch's order, and its `size`
    bytes begin at byte `offset` of the file."""

    name: str
    type: Any
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class MetadataValue:
    """An entry of the metadata, still in the file: `kind` and, of an array, `item` are numbers of `GGUFValueType`."""

    kind: int
    item: int | None
    offset: int
    count: int


class Header:
    """The header of the GGUF file that `data` holds; HeaderError says what is not as the format has it."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        cursor = _Cursor(data)
        if data[:4] != b"GGUF":
            raise HeaderError("it does not begin with GGUF")
        cursor.skip(4, "magic")
        version = cursor.number("I", "version")
        if version & 0xFFFF == 0:
            raise HeaderError("written for the other byte order; a GGUF file of this machine's is expected")
        if version not in _VERSIONS:
            raise HeaderError(f"version {version}; one of {', '.join(map(str, _VERSIONS))} is expected")
        tensors, entries = cursor.number("Q", "number of tensors"), cursor.number("Q", "number of metadata entries")
        self.metadata: dict[str, MetadataValue] = {}
        for place in range(entries):
            key = cursor.text(f"key {place} of {entries} in the metadata")
            if key in self.metadata:
                raise HeaderError(f"metadata {key} is there twice")
            self.metadata[key] = cursor.value(f"metadata {key}")
        described = [cursor.tensor(f"tensor {place} of {tensors}") for place in range(tensors)]
        alignment = self.value("general.alignment") or 32
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise HeaderError(f"general.alignment is {alignment!r}; a power of two is expected")
        start = -(-cursor.at // alignment) * alignment
        self.tensors: dict[str, StoredTensor] = {}
        for name, dimensions, kind, offset in described:
            if name in self.tensors:
                raise HeaderError(f"tensor {name} is there twice")
            self.tensors[name] = _placed(name, dimensions, kind, start + offset, len(data))

    def value(self, key: str) -> Any:
        """The metadata value as Python's own, None when absent; HeaderError for text that is not UTF-8."""
        entry = self.metadata.get(key)
        if entry is None:
            return None
        cursor = _Cursor(self._data, entry.offset)
        kind = entry.kind if entry.item is None else entry.item
        if kind == _STRING:
            values: Any = [cursor.text(f"metadata {key}") for _ in range(entry.count)]
        else:
            values = list(struct.unpack_from(f"<{entry.count}{_SCALARS[kind]}", self._data, entry.offset))
        return values[0] if entry.item is None else values


class _Cursor:
    """A place in the file that moves on as it is read; HeaderError where the file ends before what is read."""

    def __init__(self, data: mmap.mmap, at: int = 0) -> None:
        self._data, self.at = data, at

    def skip(self, size: int, what: str) -> int:
        """Step over so many bytes; where they begin."""
        begin = self.at
        if size > len(self._data) - begin:
            raise HeaderError(f"{what} takes {size} bytes from byte {begin}, the file has {len(self._data)}")
        self.at += size
        return begin

    def number(self, code: str, what: str) -> Any:
        return struct.unpack_from("<" + code, self._data, self.skip(struct.calcsize("<" + code), what))[0]

    def text(self, what: str) -> str:
        size = self.number("Q", what)
        begin = self.skip(size, what)
        try:
            return self._data[begin : begin + size].decode()
        except UnicodeDecodeError:
            raise HeaderError(f"{what} is not UTF-8") from None

    def value(self, what: str) -> MetadataValue:
        """Step over a value of the metadata, whose text and numbers are not looked at."""
        kind, item, count = self.number("I", what), None, 1
        if kind == _ARRAY:
            item, count = self.number("I", what), self.number("Q", what)
        begin, scalar = self.at, kind if item is None else item
        if scalar in _SCALARS:
            self.skip(count * struct.calcsize("<" + _SCALARS[scalar]), what)
        elif scalar == _STRING:
            self._skip_texts(count, what)
        else:
            raise HeaderError(
                f"{what} is {'an array ' if item is not None else ''}of type {scalar}, which is not known"
            )
        return MetadataValue(kind, item, begin, count)

    def _skip_texts(self, count: int, what: str) -> None:
        at, last, length_at = self.at, len(self._data) - 8, struct.Struct("<Q").unpack_from
        for place in range(count):
            if at > last:
                raise HeaderError(f"{what} ends in its text {place} of {count} with the file")
            at += 8 + length_at(self._data, at)[0]
        self.skip(at - self.at, what)

    def tensor(self, what: str) -> tuple[str, list[int], int, int]:
        """Name, dimensions as stored (the row's length first), type and offset of a tensor."""
        name = self.text(f"the name of {what}")
        dimensions = self.number("I", f"tensor {name}")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise HeaderError(f"tensor {name} has {dimensions} dimensions; 1 to {_MOST_DIMENSIONS} are expected")
        sizes = [self.number("Q", f"tensor {name}") for _ in range(dimensions)]
        return name, sizes, self.number("I", f"tensor {name}"), self.number("Q", f"tensor {name}")


def _placed(name: str, dimensions: list[int], kind: int, begin: int, length: int) -> StoredTensor:
    """The tensor, if a file of `length` bytes can hold it."""
    import gguf

    try:
        type_ = gguf.GGMLQuantizationType(kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[type_]
    except (ValueError, KeyError):
        raise HeaderError(f"tensor {name} is of type {kind}, which gguf does not know") from None
    what = f"tensor {name} of type {type_.name} and shape {dimensions[::-1]}"
    if dimensions[0] % block:
        raise HeaderError(f"{what}: rows of whole blocks of {block} values are expected")
    size = prod(dimensions) // block * block_bytes
    if begin + size > length:
        raise HeaderError(f"{what} takes {size} bytes from byte {begin}, the file has {length}")
    if max(dimensions) >= 1 << 63:  # where another dimension is 0
        raise HeaderError(f"{what}: sizes below 2^63 are expected")
    return StoredTensor(name, type_, tuple(reversed(dimensions)), begin, size)
