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
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from pyprune.errors import InputError
from pyprune.files import require_free_file
from pyprune.models.decoder import Decoder
from pyprune.scoring.calibration import fingerprint
from pyprune.scoring.removals import Removal

FORMAT = "pyprune scoring journal 1"
_START = f'{{"entry": {{"format": "{FORMAT}"'.encode()


class Journal:
    """Losses of candidates on samples, in a file at `path` that belongs to `subject`.

    InputError when the file is of another subject, which it names, is damaged before its last line, or is in use by
    another process.
    """

    def __init__(self, path: str | os.PathLike[str], subject: dict[str, Any]) -> None:
        self.path = require_free_file(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write_lock = threading.Lock()
        self._losses: dict[tuple[Removal, int], float] = {}
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

    def fill(self, removals: Sequence[Removal], losses: Tensor, pending: Tensor) -> None:
        """Put the journaled losses into `losses [candidates, S]`, and False into `pending` there."""
        for row, removal in enumerate(removals):
            for sample in range(losses.shape[1]):
                if (removal, sample) in self._losses:
                    losses[row, sample] = self._losses[removal, sample]
                    pending[row, sample] = False

    def add(self, removals: Sequence[Removal], first_sample: int, losses: Tensor) -> None:
        """Keep `losses [candidates, N]` of the samples from `first_sample` on; they are on the disk on return."""
        self.add_entry(make_entry(removals, first_sample, losses))

    def add_entry(self, entry: dict[str, Any]) -> None:
        """Keep what `make_entry` made, here or in another process; may be called from any thread."""
        with self._write_lock:
            self._write(entry)
            self._remember(entry)

    def _remember(self, entry: dict[str, Any]) -> None:
        for removal, row in zip(entry["without"], entry["nll"], strict=True):
            for sample, value in enumerate(row, start=entry["first"]):
                self._losses[frozenset(removal), sample] = float(value)

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


def make_entry(removals: Sequence[Removal], first_sample: int, losses: Tensor) -> dict[str, Any]:
    """The entry that keeps `losses [candidates, N]` of the samples from `first_sample` on."""
    return {"first": first_sample, "without": [sorted(removal) for removal in removals], "nll": losses.tolist()}


def journal_subject(
    decoder: Decoder, input_ids: Tensor, mask: Tensor | None, work: str, targets: Tensor | None = None
) -> dict[str, Any]:
    """What a journal's results depend on: the work, the model's sizes and a sample of its weights, dtype, tokens and
    which of them count."""
    subject = {
        "work": work,
        "model": decoder.name,
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "device": decoder.device.type,
        "calibration": fingerprint(input_ids)["sha256"],
        "mask": None if mask is None else hashlib.sha256(mask.cpu().numpy().tobytes()).hexdigest(),
        "weights": weights_digest(decoder),
    }
    return subject if targets is None else {**subject, "targets": fingerprint(targets)["sha256"]}


def weights_digest(decoder: Decoder) -> str:
    """SHA-256 of the names and sizes of all tensors, and of the first values of those that are in memory."""
    digest = hashlib.sha256()
    for name, tensor in decoder.sizes().tensors():
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
