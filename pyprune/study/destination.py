"""Where a result will be written, checked before the work that makes it."""

from __future__ import annotations

import os
from pathlib import Path

from pyprune.errors import InputError
from pyprune.files import require_free_directory, require_free_file


def require_directory(path: str | os.PathLike[str]) -> Path:
    """The absolute path, if a new directory can be made there; else InputError."""
    target = require_free_directory(path)
    _require_writable(target, path)
    return target


def require_file(path: str | os.PathLike[str]) -> Path:
    """The absolute path, if a file can be written there (an old one is replaced); else InputError."""
    target = require_free_file(path)
    _require_writable(target, path)
    return target


def require_figure(path: str | os.PathLike[str]) -> Path:
    """As `require_file`, for a PNG figure: other endings would promise another format."""
    if not str(path).lower().endswith(".png"):
        raise InputError(f"{path}: figures are written as PNG; a name that ends in .png is expected")
    return require_file(path)


def _require_writable(target: Path, given: str | os.PathLike[str]) -> None:
    folder = target.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{given}: {folder.name} is a file; a path below a directory is expected")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{given}: its directory cannot be written to; a writable directory is expected")
