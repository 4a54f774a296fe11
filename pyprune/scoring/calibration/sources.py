"""Where tokens come from: text files, JSON lines, Hugging Face datasets, named texts, and token ids as they are."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

from pyprune.errors import InputError
from pyprune.scoring.calibration import demonstrations, hub
from pyprune.scoring.calibration.json_lines import SUFFIXES as JSON_LINES
from pyprune.scoring.calibration.json_lines import read_json_lines
from pyprune.scoring.calibration.token_files import SUFFIXES as TOKEN_FILES
from pyprune.scoring.calibration.token_files import read_token_file, token_rows

Text = str | os.PathLike[str]
GAP = "\n\n"
"""Between two documents where they are packed: a blank line, as between the paragraphs of a text file."""


@dataclass(frozen=True)
class Texts:
    """Documents as text, and their name. `content`: the text of a file, of which the documents are parts."""

    name: str
    documents: Sequence[str]
    content: str | None = None

    def packed(self) -> str:
        """All of it as one text."""
        return GAP.join(self.documents) if self.content is None else self.content


@dataclass(frozen=True)
class Tokens:
    """Documents as token ids, int64 `[tokens]` each, and their name."""

    name: str
    documents: Sequence[numpy.ndarray]


Source = Texts | Tokens


def read_source(text: Text | torch.Tensor | numpy.ndarray | Source, field: str | None = None) -> Source:
    """The documents that `text` names or holds. InputError when it cannot be read or holds nothing.

    A source is returned as it is. `demo:NAME`: a named text; `hf:NAME[:CONFIG][:SPLIT]`: a Hugging Face dataset; a file
    that ends in .jsonl or .jsonl.gz: a document a line, in the key `field` ("text" when None); one in .npy or
    .safetensors, or a tensor: token ids, `[tokens]` or `[documents, tokens]`; any other file: plain UTF-8 text, its
    documents parted by blank lines.
    """
    if isinstance(text, Source):
        return text
    if isinstance(text, (torch.Tensor, numpy.ndarray)):
        _refuse_field(field, "token ids")
        return Tokens("token ids", token_rows(text, "token ids"))
    name = os.fspath(text)
    if name.startswith(hub.PREFIX):
        return Texts(_labelled(str(hub.parse_name(name)), field), hub.read_dataset(name, field or "text"))
    if name.endswith(JSON_LINES):
        return Texts(_labelled(Path(name).name, field), read_json_lines(name, field or "text"))
    _refuse_field(field, name)
    if name.startswith(demonstrations.PREFIX):
        demonstration = demonstrations.demonstration(name)
        return Texts(demonstration.source, demonstration.documents())
    if name.endswith(TOKEN_FILES):
        return Tokens(Path(name).name, read_token_file(name))
    content = read_text(name)
    return Texts(Path(name).name, re.split(r"\n[^\S\n]*\n\s*", content.strip()), content)


def require_text(text: Text | None, option: str = "--text", field: str | None = None) -> Source | None:
    """Raise InputError now, before slow work, when a text (for None, the demonstration text) cannot be had.

    Returns the text where that took reading it, so that it is read once: `calibration` takes it. A dataset is not
    downloaded, and a demonstration text not read: None. `option`: the option that names the text, for the message.
    """
    if text is None:
        _refuse_field(field, "the demonstration text")
        demonstrations.require_demonstration(demonstrations.CALIBRATION, option)
    elif os.fspath(text).startswith(hub.PREFIX):
        hub.require_library(os.fspath(text))
    elif os.fspath(text).startswith(demonstrations.PREFIX):
        _refuse_field(field, os.fspath(text))
        demonstrations.require_demonstration(os.fspath(text))
    else:
        return read_source(text, field)
    return None


def same_text(a: Text, b: Text) -> bool:
    """Whether two names give one text: the same name, or plain text files of the same content."""
    names = [os.fspath(text) for text in (a, b)]
    plain = [name for name in names if not _is_special(name)]
    return names[0] == names[1] or (len(plain) == 2 and read_text(plain[0]) == read_text(plain[1]))


def public_name(text: Text) -> str:
    """What a text is called without the folders it lies in."""
    name = os.fspath(text)
    if name.startswith(hub.PREFIX):
        return str(hub.parse_name(name))
    return name if name.startswith(demonstrations.PREFIX) else Path(name).name


def read_text(path: Text) -> str:
    """The content of a UTF-8 text file; InputError when it cannot be read or holds nothing."""
    try:
        content = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; a readable UTF-8 text file is expected") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; a UTF-8 text file is expected") from None
    if not content.strip():
        raise InputError(f"{path}: holds no text; a text file with words in it is expected")
    return content


def _is_special(name: str) -> bool:
    return name.startswith((hub.PREFIX, demonstrations.PREFIX)) or name.endswith((*JSON_LINES, *TOKEN_FILES))


def _refuse_field(field: str | None, name: str) -> None:
    if field is not None:
        raise InputError(
            f"field {field!r}: {name} has no fields; one belongs to .jsonl files and {hub.PREFIX} datasets"
        )


def _labelled(name: str, field: str | None) -> str:
    return name if field in (None, "text") else f"{name}, field {field}"
