"""A comparison under way: what is finished of it, kept beside its directory, so that it resumes after any interruption.

`results.json` in that folder is written whole after each finished part: the scores, each row's evaluation, and the
timings of each batch and output length. The prunings of the width rows stand beside it, and the answers of a row whose
tasks are not all done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pyprune.errors import InputError
from pyprune.files import json_text, read_json, write_json
from pyprune.pruning import Pruning

FORMAT = "pyprune-comparison-unfinished/1"
Part = TypeVar("Part")


class Kept(Protocol):
    """What keeps finished parts."""

    def part(self, name: str, make: Callable[[], Part]) -> Part:
        """The finished part of that name, JSON data; made and kept where there is none yet."""


class Unfinished:
    """The finished parts of a comparison; `folder` None keeps nothing."""

    def __init__(self, folder: Path | None, data: dict[str, Any]) -> None:
        self._folder, self._data = folder, data

    @classmethod
    def nowhere(cls) -> Unfinished:
        """Keeps nothing."""
        return cls(None, {"format": FORMAT, "subject": {}, "parts": {}})

    @classmethod
    def open(cls, out: str | os.PathLike[str] | None, subject: dict[str, Any], resume: bool) -> Unfinished:
        """What an interrupted comparison of this subject left beside `out`; nothing yet where there is none.

        InputError for `resume` without `out`, for what is there without `resume`, and for another subject.
        """
        data: dict[str, Any] = {"format": FORMAT, "subject": subject, "parts": {}}
        if out is None:
            if resume:
                raise InputError("--resume: finished work is kept beside --out, which was not given")
            return cls(None, data)
        target = Path(out).absolute()
        folder = target.with_name(f"{target.name}.unfinished")
        if not folder.exists():
            return cls(folder, data)
        if not resume:
            raise InputError(
                f"{folder}: left by an interrupted comparison; continue it with --resume, or remove it to start again"
            )
        kept = read_json(folder / "results.json")
        if not isinstance(kept, dict) or kept.get("format") != FORMAT:
            raise InputError(f"{folder}: not an unfinished comparison; another --out is expected")
        unfinished = cls(folder, kept)
        unfinished._compare(subject)
        return unfinished

    def require(self, **subject: Any) -> None:
        """Further things that the parts depend on; InputError where they were others."""
        self._compare(subject)
        self._data["subject"].update(subject)

    def _compare(self, subject: dict[str, Any]) -> None:
        kept = self._data["subject"]
        for name, value in subject.items():
            if name in kept and json_text(kept[name]) != json_text(value):
                raise InputError(
                    f"{self._folder}: holds a comparison with {name} {_shown(kept[name], value)}; now {name} is"
                    f" {_shown(value, kept[name])}; repeat the same command, or remove the folder to start again"
                )

    def part(self, name: str, make: Callable[[], Part]) -> Part:
        """The finished part of that name, JSON data; made and kept where there is none yet."""
        parts = self._data["parts"]
        if name not in parts:
            parts[name] = make()
            self._write()
        return parts[name]

    def pruning(self, name: str, make: Callable[[], Pruning]) -> Pruning:
        """The pruning of that name, with the tensors that it adds; made and kept where there is none yet."""
        if self._folder is None:
            return make()
        file = self._folder / name.replace(os.sep, "-") / "pruning.json"
        if file.exists():
            return Pruning.from_json(file)
        self._folder.mkdir(parents=True, exist_ok=True)
        pruning = make()
        pruning.to_json(file)
        return pruning

    def journal(self, name: str) -> Path | None:
        """A file for what is finished within that part; None where nothing is kept."""
        if self._folder is None:
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{name.replace(os.sep, '-')}.journal"

    def remove(self) -> None:
        """Remove what was kept, now that the results are written."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self) -> None:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(self._folder / "results.json", self._data)


def _shown(value: Any, other: Any) -> str:
    """The value; of two objects what differs."""
    if isinstance(value, dict) and isinstance(other, dict):
        value = {key: one for key, one in value.items() if key not in other or other[key] != one}
        return ", ".join(f"{key} {one}" for key, one in value.items()) or "nothing of that"
    return str(value)
