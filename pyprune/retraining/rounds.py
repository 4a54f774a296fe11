"""What is finished of an iterative pruning, kept in a folder as it comes, so that it resumes after any interruption.

`journal.json` has the subject and the finished parts, and is written whole after each one. The model after the last
finished training is a checkpoint beside it, `round-3`; while a round is trained, its training has a state of its own.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.files import read_json, remove_directory, remove_parts, write_json
from pyprune.models.decoder import Decoder
from pyprune.models.load import load

FORMAT = "pyprune-iterate-journal/1"


class Rounds:
    """The folder `path` of the work that `subject` (JSON data) describes; None keeps nothing.

    InputError when the folder is of other work, naming what differs, or no such folder.
    """

    def __init__(self, path: str | os.PathLike[str] | None, subject: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path).absolute()
        self._parts: dict[str, Any] = {}
        self._data = {"format": FORMAT, "subject": json.loads(json.dumps(subject)), "parts": self._parts}
        if self.path is None:
            return
        file = self.path / "journal.json"
        remove_parts(self.path)
        remove_parts(file)
        if not self.path.exists():
            return
        if not file.is_file():
            if self.path.is_dir() and not any(self.path.iterdir()):
                return
            raise InputError(f"{self.path}: not a journal of pyprune iterate; another --out is expected")
        kept = read_json(file)
        if not isinstance(kept, dict) or kept.get("format") != FORMAT:
            raise InputError(f"{file}: not of format {FORMAT}; delete {self.path} to begin again")
        for name, value in self._data["subject"].items():
            before = kept["subject"].get(name)
            if before != value:
                raise InputError(
                    f"{self.path}: holds a run with {name} {before}; now {name} is {value}; delete it to begin again"
                )
        self._parts.update(kept["parts"])

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """The finished part of that name, JSON data; made and kept where there is none yet."""
        if name not in self._parts:
            self._parts[name] = make()
            self._write()
        return self._parts[name]

    def has(self, name: str) -> bool:
        return name in self._parts

    def model(self, number: int, like: Decoder, make: Callable[[Path | None], Decoder]) -> Decoder:
        """The model after the training of a round; made, from the training's own state if there is one, and kept.

        like: the decoder whose name, configuration and tokenizer it has. make: gets the file for its state.
        """
        if self.path is None:
            return make(None)
        checkpoint = self.path / f"round-{number}"
        if not checkpoint.exists():
            remove_parts(checkpoint)
            self._write()
            make(self.state_file(f"round-{number}")).save(checkpoint)
        # Read back even when it was just made: what follows is then the same after an interruption.
        return _grafted(load(checkpoint, device=like.device), like)

    def state_file(self, name: str) -> Path | None:
        """Where a training that is under way may keep its state."""
        return None if self.path is None else self.path / f"{name}.state"

    def drop(self, name: str) -> None:
        """Remove the checkpoint or the state of that name, which nothing needs any more."""
        if self.path is None:
            return
        target = self.path / name
        if target.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder, now that the result is written."""
        if self.path is not None:
            remove_directory(self.path)

    def _write(self) -> None:
        if self.path is not None:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "journal.json", self._data)


def _grafted(stored: Decoder, like: Decoder) -> Decoder:
    """The stored weights and record in a decoder that is else as `like`."""
    return replace(
        like, embedding=stored.embedding, blocks=stored.blocks, norm=stored.norm, head=stored.head,
        pruning=stored.pruning,
    )  # fmt: skip
