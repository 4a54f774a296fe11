"""Documents of a Hugging Face dataset, through the `datasets` library where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from typing import Any, NamedTuple

from pyprune.errors import InputError
from pyprune.models.tensors import one_line

PREFIX = "hf:"
SPLIT = "train"
"""The split that is read where none is named."""


class DatasetName(NamedTuple):
    """A dataset as its library names it; `split` may be a slice such as "train[:1000]"; `revision`: a branch or commit
    of the hub's repository, its main branch where None."""

    name: str
    config: str | None
    split: str
    revision: str | None = None

    def __str__(self) -> str:
        """The name as it is published: of a folder on this machine only the last part."""
        name = os.path.basename(self.name.rstrip(os.sep)) if os.path.isabs(self.name) else self.name
        name += "" if self.revision is None else f"@{self.revision}"
        return PREFIX + ":".join(part for part in (name, self.config, self.split) if part is not None)


def parse_name(text: str) -> DatasetName:
    """Read `hf:NAME[@REVISION][:CONFIG][:SPLIT]`: a single part after the name is a split if it is called like one,
    else a configuration; `hf:NAME::SPLIT` is a split by any name. InputError for anything else."""
    name, *rest = re.split(r":(?![^\[]*\])", text.removeprefix(PREFIX))  # no parting inside a slice, train[:1000]
    revision = None
    if not os.path.isabs(name):  # a folder's name may hold an @, a hub's may not
        name, _, after = name.partition("@")
        revision = after or None
    if not name or len(rest) > 2 or (rest and not rest[-1]):
        raise InputError(f"{text}: {PREFIX}NAME[:CONFIG][:SPLIT] is expected, such as {PREFIX}org/name:train[:1000]")
    if len(rest) == 1 and not re.match(r"(train|validation|valid|dev|test)\b", rest[0]):
        return DatasetName(name, rest[0], SPLIT, revision)
    return DatasetName(name, rest[0] or None if len(rest) == 2 else None, rest[-1] if rest else SPLIT, revision)


def require_library(text: str) -> None:
    """Raise InputError when the name is malformed or the library is missing."""
    parse_name(text)
    if importlib.util.find_spec("datasets") is None:
        raise InputError(
            f"{text}: needs the library datasets, which is not installed (pip install 'pyprune[datasets]')"
        )


def read_dataset(text: str, field: str = "text", *, keep_blank: bool = False) -> list[str]:
    """The strings in the column `field` of a dataset, blank ones left out unless they are kept.

    InputError when the library is missing, the dataset cannot be had, or it has no such column of strings.
    """
    require_library(text)
    parsed = parse_name(text)
    library: Any = importlib.import_module("datasets")
    try:
        revision = {} if parsed.revision is None else {"revision": parsed.revision}
        dataset = library.load_dataset(parsed.name, parsed.config, split=parsed.split, **revision)
    except Exception as error:  # network, cache and name errors come as many types
        reason = one_line(error)[:200] or type(error).__name__
        raise InputError(
            f"{text}: the dataset cannot be had ({reason}); {PREFIX}NAME[:CONFIG][:SPLIT] is expected"
        ) from None
    if field not in dataset.column_names:
        raise InputError(f"{text}: no field {field!r}; it has {', '.join(map(repr, dataset.column_names))}")
    documents = list(dataset[field])
    if not all(isinstance(document, str) for document in documents):
        raise InputError(f"{text}: field {field!r} does not hold text; a column of strings is expected")
    worded = [document for document in documents if document.strip()]
    if not worded:
        raise InputError(f"{text}: holds no text in field {field!r}; documents with words are expected")
    return documents if keep_blank else worded
