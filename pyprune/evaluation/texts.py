"""The text that a perplexity is taken on: which files and data sets there are, and how their rows become one text."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy
import torch

from pyprune.errors import InputError
from pyprune.scoring.calibration import demonstrations, hub
from pyprune.scoring.calibration.json_lines import SUFFIXES as JSON_LINES
from pyprune.scoring.calibration.json_lines import read_json_lines
from pyprune.scoring.calibration.sources import GAP, Source, Text, Texts, Tokens, read_source


class Dataset(NamedTuple):
    """A data set of the Hugging Face hub and the field of its rows that holds the text."""

    name: str
    field: str


DATASETS = {
    "wikitext2": Dataset("hf:Salesforce/wikitext:wikitext-2-raw-v1:test", "text"),
    # Its repository holds a script, which the library no longer runs; the hub keeps the same rows as a table.
    "ptb": Dataset("hf:ptb-text-only/ptb_text_only@refs/convert/parquet:penn_treebank:validation", "sentence"),
}
"""The two texts of the paper's tables, by the names that published results use."""


def read_text_of(
    ppl: Text | torch.Tensor | numpy.ndarray | Source, join: str = "raw", field: str | None = None
) -> Source:
    """The text that `ppl` names, as one document, or token ids as they are. InputError when it cannot be had.

    ppl: `wikitext2` or `ptb`, or what `pyprune.scoring.calibration` reads: a file, `hf:NAME...`, `demo:NAME`, token
    ids. join: "raw", a file as it stands and documents parted by blank lines; "rows", all rows with a blank line
    between every two, where a row is a document, of a text file a line with its line break, and blank ones are empty.
    field: the key or column that holds the text.
    """
    if isinstance(ppl, (torch.Tensor, numpy.ndarray, Texts, Tokens)):
        return _one_text(read_source(ppl, field), join)
    name = os.fspath(ppl)
    title = name
    if name in DATASETS and not Path(name).exists():
        dataset = DATASETS[name]
        name, field = dataset.name, field or dataset.field
    elif not name.startswith((hub.PREFIX, demonstrations.PREFIX)) and not Path(name).exists():
        accepted = ", ".join((*DATASETS, "hf:NAME", "demo:NAME"))
        raise InputError(f"{title}: no such file or data set; a text file, token ids, {accepted} are accepted")
    if join == "rows" and name.startswith(hub.PREFIX):
        rows = hub.read_dataset(name, field or "text", keep_blank=True)
        return _joined(str(hub.parse_name(name)) + _of(field), rows)
    if join == "rows" and name.endswith(JSON_LINES):
        return _joined(Path(name).name + _of(field), read_json_lines(name, field or "text", keep_blank=True))
    source = read_source(name, field)
    if join == "rows" and isinstance(source, Texts) and source.content is not None:
        return _joined(source.name, re.findall(r"[^\n]*\n|[^\n]+", source.content))
    return _one_text(source, join)


def _joined(name: str, rows: list[str]) -> Texts:
    return Texts(name, [GAP.join(row if row.strip() else "" for row in rows)])


def _one_text(source: Source, join: str) -> Source:
    if isinstance(source, Tokens):
        if join == "rows":
            raise InputError(f"join rows: {source.name} has no rows to join; raw is accepted for token ids")
        return source
    return replace(source, documents=[source.packed()], content=None)


def _of(field: str | None) -> str:
    return "" if field in (None, "text") else f", field {field}"
