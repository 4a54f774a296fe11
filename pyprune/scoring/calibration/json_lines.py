"""Documents in JSON lines: an object a line, plain or compressed by gzip."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

from pyprune.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.gz")


def read_json_lines(path: str, field: str = "text", *, keep_blank: bool = False) -> list[str]:
    """The string under `field` of every object, in file order; blank lines are left out, and blank strings unless they
    are kept.

    InputError naming the line where it is no object, lacks the field or holds something else there.
    """
    documents = []
    opened = gzip.open if path.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    documents.append(_document(line, field, f"{Path(path).name} line {number}"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}); UTF-8 JSON lines are expected") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: not a whole gzip file ({error}); JSON lines are expected") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; a readable file of JSON lines is expected") from None
    worded = [document for document in documents if document.strip()]
    if not worded:
        raise InputError(f"{path}: holds no text; JSON lines with words in the field {field!r} are expected")
    return documents if keep_blank else worded


def _document(line: str, field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}); an object a line is expected") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: a JSON {type(row).__name__}; an object a line is expected")
    if field not in row:
        raise InputError(f"{where}: no field {field!r}; it has {', '.join(map(repr, row)) or 'none'}")
    if not isinstance(row[field], str):
        raise InputError(f"{where}: field {field!r} holds {str(row[field])[:40]!r}; a string is expected")
    return row[field]
