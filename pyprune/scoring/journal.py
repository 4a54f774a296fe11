"""Finished parts of a long scoring, kept in a file as they come, so that the work resumes after any interruption.

JSON lines, only ever appended to and synced to the disk one by one. Each has a checksum; a last line that was cut off
(kill -9, a full disk, a power cut) is dropped. The first line is the subject: the work that the losses belong to.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.files import require_free_file
from pyprune.models.load_any import AnyDecoder
from pyprune.scoring.as_layered import as_layered
from pyprune.scoring.calibration import fingerprint
from pyprune.scoring.edits import Edits
from pyprune.scoring.layered_model import LayeredModel

FORMAT = "pyprune scoring journal 2"
_START = f'{{"entry": {{"format": "{FORMAT}"'.encode()


class Journal:
    """What is summed up for candidates on samples, in a file at `path` that belongs to `subject`.

    InputError when the file is of another subject, which it names, is damaged before its last line, or is in use by
    another process.
    """

    def __init__(self, path: str | os.PathLike[str], subject: dict[str, Any]) -> None:
        self.path = require_free_file(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write_lock = threading.Lock()
        self._sums: dict[tuple[Edits, int], list[float]] = {}  # a value a measure
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self._lock()
            self._read(subject)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what is in it stays."""
        os.close(self._file)

    def delete(self) -> None:
        """Remove the file, now that the result is written."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def fill(self, candidates: Sequence[Edits], sums: Tensor, pending: Tensor) -> None:
        """Put the journaled sums into `sums [measures, candidates, S]`, and False into `pending [candidates, S]`."""
        for row, edits in enumerate(candidates):
            for sample in range(sums.shape[2]):
                if (edits, sample) in self._sums:
                    sums[:, row, sample] = torch.tensor(self._sums[edits, sample], dtype=sums.dtype)
                    pending[row, sample] = False

    def add(self, candidates: Sequence[Edits], first_sample: int, sums: Tensor) -> None:
        """Keep `sums [measures, candidates, N]` of the samples from `first_sample` on: on the disk on return."""
        self.add_entry(make_entry(candidates, first_sample, sums))

    def add_entry(self, entry: dict[str, Any]) -> None:
        """Keep what `make_entry` made, here or in another process; may be called from any thread."""
        with self._write_lock:
            self._write(entry)
            self._remember(entry)

    def _remember(self, entry: dict[str, Any]) -> None:
        for edits, by_sample in zip(entry["edits"], entry["sums"], strict=True):
            for sample, values in enumerate(by_sample, start=entry["first"]):
                self._sums[frozenset(edits), sample] = values

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{self.path}: in use by another process; one at a time is expected") from None

    def _read(self, subject: dict[str, Any]) -> None:
        with open(self._file, "rb", closefd=False) as file:
            lines = file.read().splitlines(keepends=True)
        if lines and not (lines[0].startswith(_START) or _START.startswith(lines[0])):
            raise InputError(f"{self.path}: not a {FORMAT}; another file name is expected")
        parsed = [_parse_line(line) for line in lines]
        if parsed and parsed[-1] is None:  # it was cut off
            os.ftruncate(self._file, sum(map(len, lines[:-1])))
            parsed.pop()
        entries = [entry for entry in parsed if entry is not None]
        if len(entries) < len(parsed):
            number = parsed.index(None) + 1
            raise InputError(f"{self.path}: line {number} is damaged; delete the file to begin again")
        if not entries:
            os.ftruncate(self._file, 0)
            self._write({"format": FORMAT, **subject})
            _sync_folder(self.path.parent)
            return
        self._require_subject(subject, entries[0])
        for entry in entries[1:]:
            self._remember(entry)

    def _require_subject(self, subject: dict[str, Any], header: dict[str, Any]) -> None:
        for name, value in subject.items():
            if header.get(name) != value:
                raise InputError(
                    f"{self.path}: of {name} {header.get(name)}, but {name} is {value} now; delete the file to begin"
                    " again"
                )

    def _write(self, entry: dict[str, Any]) -> None:
        text = json.dumps(entry, ensure_ascii=False)
        line = json.dumps({"entry": entry, "sha256": _checksum(text)}, ensure_ascii=False).encode() + b"\n"
        if os.write(self._file, line) != len(line):
            raise OSError(f"{self.path}: a line could not be written whole")
        os.fsync(self._file)


def make_entry(candidates: Sequence[Edits], first_sample: int, sums: Tensor) -> dict[str, Any]:
    """The entry that keeps `sums [measures, candidates, N]` of the samples from `first_sample` on."""
    by_candidate = sums.permute(1, 2, 0).tolist()
    return {"first": first_sample, "edits": [sorted(edits) for edits in candidates], "sums": by_candidate}


def journal_subject(
    model: AnyDecoder | LayeredModel, input_ids: Tensor, mask: Tensor | None, work: str, **settings: Any
) -> dict[str, Any]:
    """What a journal's results depend on: the work, the model's sizes and a sample of its weights, dtype, tokens and
    the given settings."""
    layered = as_layered(model)
    return {
        "work": work,
        "model": layered.name,
        "dtype": str(layered.dtype).removeprefix("torch."),
        "device": layered.device.type,
        "calibration": fingerprint(input_ids)["sha256"],
        "mask": None if mask is None else tensor_digest(mask),
        "weights": weights_digest(layered.tensors()),
        **settings,
    }


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's values."""
    return hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest()


def weights_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of the names and sizes of all tensors, and of the first values of those that are in memory."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        if not tensor.is_meta:
            digest.update(tensor[:256].reshape(-1)[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """The entry of a line; None when the line is cut off or damaged."""
    try:
        data = json.loads(line)
        entry = data["entry"]
        intact = line.endswith(b"\n") and data["sha256"] == _checksum(json.dumps(entry, ensure_ascii=False))
        return entry if intact and isinstance(entry, dict) else None
    except (ValueError, TypeError, KeyError):
        return None


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
