"""Reading a recipe's tables: each key once, its kind checked, and errors that name key, value and what was expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pyprune.errors import InputError

T = TypeVar("T")
Read = Callable[[Any], T]
"""Gives the value in its normal form; ValueError, with what is expected as its message, for another kind of value."""

REQUIRED: Any = object()


class Fields:
    """The keys of one table of a recipe. `where`: the file and the table, for messages."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._data = dict(data)
        self._known: list[str] = []

    def take(self, key: str, read: Read[T], default: Any = REQUIRED) -> T:
        """The value under a key, read; InputError for one of another kind, and for a missing one without a default."""
        self._known.append(key)
        if key not in self._data:
            if default is REQUIRED:
                raise InputError(f"{self.where}: {key} is missing; {self._expected(read)} is expected")
            return default
        value = self._data.pop(key)
        try:
            return read(value)
        except (ValueError, InputError) as error:
            raise InputError(f"{self.where}: {key} {value!r}: {error}") from None

    def finish(self) -> None:
        """InputError for a key that nobody took."""
        for key, value in self._data.items():
            raise InputError(f"{self.where}: {key} {value!r}: no such key; {', '.join(self._known)} are accepted")

    @staticmethod
    def _expected(read: Read[Any]) -> str:
        try:
            read(None)
        except (ValueError, InputError) as error:
            return str(error).removesuffix(" is expected").removesuffix(" are expected")
        return "a value"


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text is expected")
    return value


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is expected")
    return value


def whole(least: int) -> Read[int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"a whole number from {least} is expected")
        return value

    return read


def number(above: float) -> Read[float]:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < float("inf"):
            raise ValueError(f"a number above {above:g} is expected")
        return float(value)

    return read


def one_of(*accepted: str) -> Read[str]:
    def read(value: Any) -> str:
        if value not in accepted:
            raise ValueError(f"one of {', '.join(accepted)} is expected")
        return value

    return read


def several(read_item: Read[T]) -> Read[tuple[T, ...]]:
    """A list of one or more different values."""

    def read(value: Any) -> tuple[T, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise ValueError("a list of one or more values is expected")
        items = tuple(read_item(item) for item in value)
        if len(set(map(str, items))) < len(items):
            raise ValueError("a list of different values is expected")
        return items

    return read


def table(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("a table is expected")
    return dict(value)


def tables(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError("one or more tables are expected")
    return [table(item) for item in value]


def table_of(read_item: Read[T]) -> Read[dict[str, T]]:
    """A table whose values are all of one kind."""

    def read(value: Any) -> dict[str, T]:
        return {key: read_item(item) for key, item in table(value).items()}

    return read
