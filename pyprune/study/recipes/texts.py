"""The texts of a recipe by their roles: calibration, training and held-out, which have no document in common."""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy

from pyprune.errors import InputError
from pyprune.evaluation.protocol import PerplexityProtocol
from pyprune.evaluation.task_data import Documents
from pyprune.evaluation.texts import DATASETS, read_text_of
from pyprune.evaluation.windows import TextWindows, windows_of
from pyprune.models.decoder import Decoder
from pyprune.retraining.clean_texts import require_clean, without_quotes
from pyprune.retraining.instructions import require_instructions
from pyprune.retraining.overlap import word_runs
from pyprune.scoring import calibration
from pyprune.scoring.calibration import Windows
from pyprune.scoring.calibration.demonstrations import PREFIX
from pyprune.scoring.calibration.sources import Source, Texts, Tokens, public_name, read_source
from pyprune.scoring.calibration.token_files import SUFFIXES as TOKEN_FILES
from pyprune.study.recipes.budget import GIVEN, Budget

ROLES = ("calibration", "training", "instructions", "repair")

COMPARED_PARAGRAPHS = 200_000
LEAST_CHARACTERS = 40
"""Shorter paragraphs, headings and the like, may stand in two texts."""
RUN = 13
"""Words in a row that a document of a task and a training text must share to count as overlapping."""

RANDOM_TOKENS = 100_000
PART = re.compile(r"(.+)\[(\d{1,3})%:(\d{1,3})%\]")


@dataclass(frozen=True)
class RecipeTexts:
    """What was read. None: random token ids, of a `shape:` model. `instructions`: the file whose rows `training` has,
    where it is one of instructions. `repair`: what repairs are fitted on. `left_out`: held-out texts that nobody named.
    `trains`: whether anything is trained. `by_rows`: held-out texts whose rows were joined as in the paper's code."""

    calibration: Source | None
    training: Source | None
    instructions: str | None
    repair: Source | None
    held_out: dict[str, Source | None]
    left_out: tuple[str, ...]
    trains: bool
    by_rows: tuple[str, ...]

    def has_unknown_words(self, name: str) -> bool:
        """Whether rare words of a held-out text were replaced by <unk>."""
        source = self.held_out[name]
        return isinstance(source, Texts) and any("<unk>" in document for document in source.documents)

    def described(self) -> dict[str, str]:
        """Role -> what the text is called."""
        described = {"calibration": _name_of(self.calibration)}
        if self.trains:
            described["training"] = _name_of(self.training)
        if self.repair is not self.calibration:
            described["repair"] = _name_of(self.repair)
        return described | {f"held out, {name}": _name_of(source) for name, source in self.held_out.items()}

    def compared(self) -> dict[str, Any]:
        """What was looked at for common documents, as JSON data: the roles that were compared with each other, and
        those of which a part was, or nothing, being token ids."""
        every = {role: source for sources in self._apart() for role, source in sources.items()}
        together = [[role for role in sources if isinstance(sources[role], Texts)] for sources in self._apart()]
        return {
            "together": [roles for roles in together if len(roles) > 1],
            "in_part": [role for role, source in every.items() if len(_paragraphs(source)) > COMPARED_PARAGRAPHS],
            "paragraphs": COMPARED_PARAGRAPHS,
            "least_characters": LEAST_CHARACTERS,
            "token_ids": [role for role, source in every.items() if isinstance(source, Tokens)],
        }

    def require_disjoint(self) -> None:
        """Raise InputError for a document that two texts share."""
        for sources in self._apart():
            seen: dict[str, str] = {}
            for role, source in sources.items():
                for document in set(_paragraphs(source)[:COMPARED_PARAGRAPHS]):
                    if seen.setdefault(document, role) != role:
                        raise InputError(
                            f"{role}: has a document in common with {seen[document]}, {document[:60]!r}; texts without "
                            "a common document are expected"
                        )

    def _apart(self) -> list[dict[str, Source | None]]:
        """Texts by role that may share nothing. A repair may be fitted on what chose the blocks, and on what a training
        sees later."""
        fitted = {"calibration": self.calibration} | ({"training": self.training} if self.trains else {})
        repaired = [] if self.repair is self.calibration else [{"repair": self.repair} | self.held_out]
        return [fitted | self.held_out, *repaired]


def _name_of(source: Source | None) -> str:
    return "random token ids" if source is None else source.name


def read_texts(budget: Budget, named: Mapping[str, str], random: bool, trains: bool) -> RecipeTexts:
    """The texts of a budget, those that the user names in place of its own.

    named: role or held-out name -> text. random: whether the model takes random token ids where nothing is named.
    trains: whether a text to train on is needed. InputError for a name that is no role, a text that cannot be had, one
    of the tasks' texts as training text, and a document that two texts share.
    """
    accepted = (*ROLES, *budget.held_out)
    for role in named:
        if role not in accepted:
            raise InputError(f"--text {role}=...: {', '.join(accepted)} are accepted before the =")
    if {"training", "instructions"} <= set(named):
        raise InputError(
            f"--text training={named['training']} and instructions={named['instructions']}: one of them is expected"
        )
    sources: dict[str, Source | None] = {}
    left_out: list[str] = []
    by_rows: list[str] = []
    for name, default in budget.held_out.items():
        text = named.get(name, default)
        if random and name not in named:
            sources[name] = None
        elif text == GIVEN:
            left_out.append(name)
        else:
            sources[name] = read_text_of(text, "rows") if _of_rows(name, text) else _held_out(text)
            by_rows += [name] if _of_rows(name, text) else []
    if not sources:
        raise InputError(f"held-out texts {', '.join(left_out)}: none is named; --text {left_out[0]}=FILE is expected")
    chosen = _required(
        "calibration", named.get("calibration", budget.calibration), random and "calibration" not in named
    )
    instructions = named.get("instructions", None if "training" in named else budget.instructions)
    training = None
    if not trains:
        instructions = None
    elif instructions is None:
        text = named.get("training", budget.training or GIVEN)
        _require_no_task("training", text)
        training = _required("training", text, random and "training" not in named, sources.values())
    elif instructions == GIVEN:
        raise InputError("instructions: none are named; --text instructions=FILE is expected (or training=FILE)")
    else:
        training = _instructions(instructions)
    repair = chosen
    of_repair = named.get("repair") or (None if random else budget.repair)
    if of_repair is not None:
        _require_no_task("repair", of_repair)
        repair = _required("repair", of_repair, False, sources.values())
    texts = RecipeTexts(chosen, training, instructions, repair, sources, tuple(left_out), trains, tuple(by_rows))
    texts.require_disjoint()
    return texts


def _require_no_task(role: str, text: str) -> None:
    match = PART.fullmatch(text)
    try:
        require_clean(match[1] if match else text)
    except InputError as error:
        raise InputError(f"{role}: {error}") from None


def _instructions(file: str) -> Texts:
    """The rows of a file of instructions or conversations, each as one document, its parts as paragraphs."""
    require_instructions(file)
    with (gzip.open if file.endswith(".gz") else open)(file, "rt", encoding="utf-8-sig") as opened:
        content = opened.read()
    is_list = content.lstrip().startswith("[")
    rows = json.loads(content) if is_list else map(json.loads, filter(str.strip, content.split("\n")))
    return Texts(public_name(file), ["\n\n".join(_parts_of(row)) for row in rows])


def _parts_of(row: dict[str, Any]) -> list[str]:
    """What a row of instructions says."""
    if "messages" in row:
        return [message["content"] for message in row["messages"]]
    return [row[key] for key in ("instruction", "input", "output") if row.get(key)]


def _required(role: str, text: str, random: bool, judging: Iterable[Source | None] = ()) -> Source | None:
    """The text, of a demonstration text the documents that do not quote a text in `judging`."""
    if random:
        return None
    if text == GIVEN:
        raise InputError(f"{role}: no text is named; --text {role}=FILE is expected")
    source = read_part(text)
    if text.startswith(PREFIX) and isinstance(source, Texts):
        judged = (document for other in judging if isinstance(other, Texts) for document in other.documents)
        kept = without_quotes(source.documents, judged)
        if quoting := len(source.documents) - len(kept):
            return Texts(f"{source.name}, without {quoting} that quote held-out text", kept)
    return source


def read_part(text: str) -> Source:
    """A text, or with "[A%:B%]" behind its name the documents from A % to B % of it."""
    match = PART.fullmatch(text)
    if match is None:
        if _is_part(text):
            raise InputError(f"text {text!r}: a part such as demo:lambada[0%:40%] is expected in brackets")
        return read_source(text)
    first, last = int(match[2]), int(match[3])
    if not first < last <= 100:
        raise InputError(f"text {text!r}: a part from a smaller to a larger percentage up to 100 is expected")
    source = read_source(match[1])
    count = len(source.documents)
    start, stop = count * first // 100, count * last // 100
    if start == stop:
        raise InputError(f"text {text!r}: no document lies in that part of {count}")
    name = f"{source.name}, documents {start + 1} to {stop} of {count}"
    if isinstance(source, Texts):
        return Texts(name, source.documents[start:stop])
    return Tokens(name, source.documents[start:stop])


def _held_out(text: str) -> Source:
    return read_part(text) if _is_part(text) else read_text_of(text)


def _of_rows(name: str, text: str) -> bool:
    """Whether it is a text of the paper's tables, read with a blank line between every two rows, as its code does."""
    return name in DATASETS and not text.endswith(TOKEN_FILES) and not _is_part(text)


def _is_part(text: str) -> bool:
    return text.endswith("]") and "[" in text


def _paragraphs(source: Source | None) -> list[str]:
    """The paragraphs that are compared, of a longer text one more than are."""
    if not isinstance(source, Texts):
        return []
    paragraphs = (part for document in source.documents for part in re.split(r"\n\s*\n", document))
    worded = (words for text in paragraphs if len(words := " ".join(text.split())) >= LEAST_CHARACTERS)
    return list(itertools.islice(worded, COMPARED_PARAGRAPHS + 1))


def calibration_windows(
    decoder: Decoder, tokenizer: Any, texts: RecipeTexts, budget: Budget, samples: int | None
) -> Windows:
    """`samples` windows (None: the budget's number) of the calibration text."""
    return calibration.calibration(
        decoder, texts.calibration, samples or budget.samples, budget.seq_len, budget.seed, tokenizer
    )


def repair_windows(decoder: Decoder, tokenizer: Any, texts: RecipeTexts, budget: Budget) -> Windows:
    """What repairs are fitted on."""
    return calibration.calibration(decoder, texts.repair, budget.repair_samples, budget.seq_len, budget.seed, tokenizer)


def held_out_windows(decoder: Decoder, tokenizer: Any, texts: RecipeTexts, name: str, budget: Budget) -> TextWindows:
    """The windows of a held-out text, by the protocol of the paper's code, with the budget's window and tokens."""
    source = texts.held_out[name]
    if source is None:
        tokens = budget.tokens or RANDOM_TOKENS
        count = max(1, tokens // budget.window)
        windows = calibration.random_windows(decoder.vocab_size, count, budget.window, [budget.seed, 1])
        source = Tokens("random token ids", [windows.input_ids.flatten().numpy()])
    elif isinstance(source, Texts):
        source = Texts(source.name, [source.packed()])
    protocol = PerplexityProtocol(window=budget.window, join="rows" if name in texts.by_rows else "raw")
    return windows_of(decoder, source, protocol, tokens=budget.tokens, tokenizer=tokenizer)


def training_text(decoder: Decoder, texts: RecipeTexts, budget: Budget) -> Source:
    """What a model is trained on where there are no instructions."""
    if texts.training is not None:
        return texts.training
    ids = numpy.random.default_rng([budget.seed, 2]).integers(0, decoder.vocab_size, RANDOM_TOKENS, dtype=numpy.int64)
    return Tokens("random token ids", [ids])


def tasks_in_training(training: Source | None, tasks: Mapping[str, Documents]) -> dict[str, int]:
    """Task -> how many of its documents share a run of 13 words with the training text."""
    if not isinstance(training, Texts):
        return {}
    runs = {run for document in training.documents for run in word_runs(document, RUN)}
    return {
        name: sum(any(run in runs for run in word_runs(" ".join(_words_of(row)), RUN)) for row in documents.rows)
        for name, documents in tasks.items()
    }


def _words_of(row: Any) -> Iterable[str]:
    """The texts in a document of a task."""
    if isinstance(row, str):
        yield row
    elif isinstance(row, Mapping | list | tuple):
        for item in row.values() if isinstance(row, Mapping) else row:
            yield from _words_of(item)
