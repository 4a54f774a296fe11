"""Finished work by what it depends on: the same pruning, model or measurement is made once, whichever recipe asks.

Every piece is a file or a folder whose name ends in a key, the SHA-256 of all that the piece depends on, and which is
written whole. A piece that is there is finished; an interrupted run leaves what was finished before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.files import read_json, remove_parts, whole_directory, write_json
from pyprune.models import load
from pyprune.models.decoder import Decoder
from pyprune.pruning import Pruning

FORMAT = "pyprune-recipe-part/1"
KEY_LENGTH = 24


def content_key(content: Any) -> str:
    """A short name of JSON data; equal data has the same."""
    text = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


class Store:
    """The pieces in a folder. `seconds`: what each piece used so far took when it was made, by its file's name, without
    the pieces that were made within it."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]  # what the pieces took that were made within each piece under way
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{folder}: is a file; a folder for finished work is expected")

    def has(self, kind: str, content: Any) -> bool:
        """Whether that piece is finished."""
        return (self._place(kind, content) / "part.json").exists()

    def part(self, kind: str, content: Any, make: Callable[[], Any]) -> Any:
        """JSON data; made and kept where it is not there yet."""
        return self._piece(kind, content, lambda folder: make())["result"]

    def pruning(self, content: Any, make: Callable[[], Pruning]) -> Pruning:
        """A pruning with the tensors that it adds."""

        def write(folder: Path) -> None:
            make().to_json(folder / "pruning.json")

        self._piece("pruning", content, write)
        return Pruning.from_json(self._place("pruning", content) / "pruning.json")

    def model(self, content: Any, make: Callable[[], tuple[Decoder, Any]], device: Any = "cpu") -> Decoder:
        """A checkpoint, always as it is read back, so that a resumed run goes on with the same weights. `make` gives
        the model, and JSON data about it that is kept beside."""

        def write(folder: Path) -> Any:
            decoder, about = make()
            decoder.save(folder / "checkpoint")
            return about

        self._piece("model", content, write)
        return load(self._place("model", content) / "checkpoint", device=device)

    def about_model(self, content: Any) -> Any:
        """What was kept beside a checkpoint; None where it was not made."""
        return self._piece("model", content, _nothing)["result"] if self.has("model", content) else None

    def remove(self) -> None:
        """Remove all of it, now that the results are written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def scratch(self, kind: str, content: Any) -> Path:
        """A file or folder for what a piece under way keeps itself; removed when the piece is finished."""
        return self.folder / "unfinished" / self._place(kind, content).name

    def _place(self, kind: str, content: Any) -> Path:
        return self.folder / f"{kind}-{content_key(content)}"

    def _piece(self, kind: str, content: Any, make: Callable[[Path], Any]) -> dict[str, Any]:
        place = self._place(kind, content)
        if not (place / "part.json").exists():
            remove_parts(place)  # of a killed run; two at once cannot make one piece
            with whole_directory(place) as folder:
                result, seconds = self._made(folder, make)
                record = {"format": FORMAT, "kind": kind, "content": content, "seconds": seconds, "result": result}
                write_json(folder / "part.json", record)
        _remove(self.scratch(kind, content))
        record = _record(place / "part.json")
        self.seconds[place.name] = record["seconds"]
        return record

    def _made(self, folder: Path, make: Callable[[Path], Any]) -> tuple[Any, float]:
        """What `make` gives, and the seconds that it took without the pieces made within it: those have their own."""
        began = time.perf_counter()
        self._inner.append(0.0)
        try:
            result = make(folder)
        finally:
            nested, took = self._inner.pop(), time.perf_counter() - began
            self._inner[-1] += took
        return result, took - nested


def _record(file: Path) -> dict[str, Any]:
    record = read_json(file)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{file}: not finished work of a recipe; remove it, or name another folder")
    return record


def _nothing(folder: Path) -> None:
    raise AssertionError("it is there")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
