"""Finished rounds of a search, kept in a folder as they come, so that an interrupted one goes on.

A JSON file a round, written whole, and beside them the journals of the scoring and of the repair that are under way.
`subject.json` says what they belong to.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.files import read_json, write_json


class RoundJournal:
    """The folder `path`, which belongs to `subject`. InputError when it is of another subject, or no such folder."""

    def __init__(self, path: str | os.PathLike[str], subject: dict[str, Any]) -> None:
        self.path = Path(path).absolute()
        named = self.path / "subject.json"
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{path}: is a file; a folder for the rounds of a search is expected")
        # What is half written, of one that was interrupted at once, is no sign of another folder.
        if self.path.exists() and any(entry.suffix != ".part" for entry in self.path.iterdir()):
            if not named.is_file():
                raise InputError(f"{path}: not a journal of a search with repairs; another name is expected")
            if read_json(named) != json.loads(json.dumps(subject)):
                raise InputError(
                    f"{path}: belongs to a search of another model, text or options; delete it to begin again"
                )
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(named, subject)

    def get(self, number: int) -> dict[str, Any] | None:
        """What was kept of a round, None where it is not finished."""
        file = self._file(number)
        data = read_json(file) if file.exists() else None
        if data is not None and not isinstance(data, dict):
            raise InputError(f"{file}: not a round of a search; delete {self.path} to begin again")
        return data

    def put(self, number: int, data: dict[str, Any]) -> None:
        """Keep a finished round; it is in the file on return. What was kept of its parts goes."""
        write_json(self._file(number), data)
        self.scoring(number).unlink(missing_ok=True)
        shutil.rmtree(self.repair(number), ignore_errors=True)

    def scoring(self, number: int) -> Path:
        """The journal of a round's scoring."""
        return self.path / f"scoring-{number}"

    def repair(self, number: int) -> Path:
        """The journal of the repair that a round begins with."""
        return self.path / f"repair-{number}"

    def delete(self) -> None:
        """Remove the folder, now that the result is written."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.path / f"round-{number}.json"
