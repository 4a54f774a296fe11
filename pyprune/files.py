"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pyprune.errors import InputError

T = TypeVar("T")


def _permissions_by_umask(path: str | os.PathLike[str], mode: int) -> None:
    """Give a temporary file or folder (made private) the mode that an ordinary one would have."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, mode & ~umask)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in a folder beside `path`; on success it becomes `path`, on any error it is removed.

    It has a folder of its own, as some writers (safetensors) make a temporary file beside it, which a kill would leave.
    """
    target = Path(path)
    require_free_file(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    file = scratch / target.name
    try:
        file.touch()
        yield file
        _permissions_by_umask(file, 0o666)
        os.replace(file, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def whole_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success it becomes `path`, on any error it is removed.

    Raises InputError before anything is written when `path` exists and is not an empty directory.
    """
    target = require_free_directory(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        yield scratch
        for entry in (scratch, *scratch.rglob("*")):  # some writers (safetensors) make private files
            _permissions_by_umask(entry, 0o777 if entry.is_dir() else 0o666)
        if target.is_dir():
            target.rmdir()
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_parts(path: str | os.PathLike[str]) -> None:
    """Remove what a killed process left half-written of `path`. For who alone writes there."""
    for target in {Path(path).absolute(), Path(path).resolve()}:  # of a linked directory they are beside the real one
        # What tempfile puts in has no dots: ".ft.v2.XXXXXXXX.part" is of "ft.v2", not of "ft".
        part = rf"\.{re.escape(target.name)}\.[^.]+\.part"
        # The second: a directory that was itself written whole to become a part, as a model in a result's directory.
        named = re.compile(rf"{part}|\.{part}\.[^.]+\.part", re.DOTALL)
        for entry in list(target.parent.iterdir()) if target.parent.is_dir() else ():
            if not named.fullmatch(entry.name):
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def remove_directory(path: str | os.PathLike[str]) -> None:
    """Remove a directory if there is one: whole or not at all but for parts, which `remove_parts` removes."""
    target = Path(path).absolute()
    if target.is_dir():
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        os.replace(target, scratch)  # an empty directory gives way
        shutil.rmtree(scratch, ignore_errors=True)


def require_free_directory(path: str | os.PathLike[str]) -> Path:
    """Return `path`, links followed, if a directory can be put there; else raise InputError."""
    target = Path(path).resolve()
    if target.is_mount():  # it cannot be replaced by a directory that was written whole
        raise InputError(f"{path}: is a mount point; a new directory below it is expected")
    if target.is_dir() and not any(target.iterdir()):
        return target
    if target.exists():
        kind = "is a directory that is not empty" if target.is_dir() else "is a file"
        raise InputError(f"{path}: {kind}; a new or empty directory is expected")
    return target


def require_free_file(path: str | os.PathLike[str]) -> Path:
    """Return `path` as an absolute Path if a file can be put there (an old one is replaced), else raise InputError."""
    target = Path(path).absolute()
    if target.exists() and not target.is_file():
        kind = "is a directory" if target.is_dir() else "is not a regular file"
        raise InputError(f"{path}: {kind}; a file name is expected")
    return target


def user_cache(name: str) -> Path:
    """The file of this name in pyprune's folder of the user's cache directory, whether or not it is there."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "pyprune" / name


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with whole_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data`, whole or not at all."""
    with whole_file(path) as scratch:
        scratch.write_bytes(data)


def write_json(path: str | os.PathLike[str], data: object) -> None:
    """Write `data` as indented JSON (no NaN or infinity), whole or not at all."""
    write_text(path, json_text(data))


def json_text(data: object) -> str:
    """`data` as indented JSON; ValueError for NaN and infinity."""
    return json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def read_json_as(path: str | os.PathLike[str], parse: Callable[[object], T]) -> T:
    """`parse` of a JSON file's data; its InputError names the file."""
    data = read_json(path)
    try:
        return parse(data)
    except InputError as error:
        raise InputError(f"{Path(path)}: {error}") from None


def read_json(path: str | os.PathLike[str]) -> object:
    """Read a JSON file; a missing or malformed one is an InputError naming the file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; a readable JSON file is expected") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); a JSON file is expected") from None
    except RecursionError:
        raise InputError(f"{path}: its JSON is nested too deeply; a JSON file of few levels is expected") from None
