"""Instructions and conversations as training samples: the loss is taken on replies only.

A file of JSON lines, or of one JSON list, of objects in either form:

    {"instruction": ..., "input": ..., "output": ...}                  Alpaca's; "input" may be missing or empty
    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]}     through the chat template

Alpaca's template is the one that the paper's retraining uses (Taori et al. 2023); an end-of-sequence token follows the
output where there is room.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from pyprune.errors import InputError
from pyprune.models.load_any import AnyDecoder
from pyprune.models.tensors import one_line
from pyprune.retraining.samples import Sample
from pyprune.scoring.calibration.sources import public_name
from pyprune.scoring.losses import IGNORED

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
    "### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ROLES = ("system", "user", "assistant", "tool")
_FORMS = 'an object with "instruction" and "output", or with "messages", is expected'


@dataclass(frozen=True)
class Marked:
    """A text, and the spans of its characters that are replies. is_rendered: special tokens are in the text already."""

    text: str
    replies: tuple[tuple[int, int], ...]
    is_rendered: bool


@dataclass(frozen=True)
class InstructionSamples:
    """The samples of a file in order, the file's name, and how many samples were dropped, for none of their replies
    begins within the cutoff."""

    samples: list[Sample]
    name: str
    dropped: int


def instruction_samples(
    decoder: AnyDecoder, file: str | os.PathLike[str], cutoff: int, *, tokenizer: Any = None
) -> InstructionSamples:
    """The samples of a file of instructions or conversations, each cut after `cutoff` tokens.

    One without a reply in them is dropped. InputError naming the line for anything else than the two forms, and when
    no sample has a reply.
    """
    rows = list(_rows(os.fspath(file)))
    tokenizer = tokenizer or decoder.tokenizer()
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{file}: the tokenizer of {decoder.name} gives no offsets of tokens; a fast one is expected")
    cut = [_sample(marked, tokenizer, cutoff) for where, row in rows for marked in _marked(row, tokenizer, where)]
    samples = [sample for sample in cut if sample.targets()]
    if not samples:
        raise InputError(
            f"{file}: no reply begins within {cutoff} tokens (cutoff), so that all samples, {len(cut)}, were dropped; a"
            " larger cutoff is expected"
        )
    largest = max(int(sample.input_ids.max()) for sample in samples)
    if largest >= decoder.vocab_size:
        raise InputError(f"{file}: token id {largest} is outside the model's vocabulary of {decoder.vocab_size}")
    return InstructionSamples(samples, public_name(file), len(cut) - len(samples))


def require_instructions(file: str | os.PathLike[str]) -> None:
    """Raise InputError now, before slow work, for a file that cannot be read or is of neither form."""
    for where, row in _rows(os.fspath(file)):
        _check(row, where)


def _rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, and where they stand."""
    try:
        if path.endswith(".gz"):
            with gzip.open(path, "rt", encoding="utf-8-sig") as file:
                content = file.read()
        else:
            content = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; UTF-8 JSON lines are expected") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: not a whole gzip file ({error}); JSON lines are expected") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; a readable file of JSON lines is expected") from None
    name, any_row = Path(path).name, False
    for where, row in _list_rows(content, name) if content.lstrip().startswith("[") else _line_rows(content, name):
        if not isinstance(row, dict):
            raise InputError(f"{where}: a JSON {type(row).__name__}; {_FORMS}")
        any_row = True
        yield where, row
    if not any_row:
        raise InputError(f"{path}: holds no rows; {_FORMS}, one a line")


def _list_rows(content: str, name: str) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(_parsed(content, name), start=1):
        yield f"{name} row {number}", row


def _line_rows(content: str, name: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield f"{name} line {number}", _parsed(line, f"{name} line {number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}); {_FORMS}") from None


def _check(row: dict[str, Any], where: str) -> None:
    if "messages" in row:
        return _check_messages(row["messages"], where)
    for key in ("instruction", "output"):
        if key not in row:
            raise InputError(f"{where}: no key {key!r}; {_FORMS}")
    for key in ("instruction", "input", "output"):
        value = row.get(key)
        if not isinstance(value, str) and not (key == "input" and value is None):
            raise InputError(f"{where}: {key} is {str(value)[:40]!r}; a string is expected")


def _check_messages(messages: Any, where: str) -> None:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InputError(f"{where}: messages is {str(messages)[:40]!r}; a list of objects is expected")
    for message in messages:
        if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise InputError(
                f"{where}: message {str(message)[:60]}: a role ({', '.join(ROLES)}) and a string as content are"
                " expected"
            )
    if not any(message["role"] == "assistant" for message in messages):
        raise InputError(f"{where}: no message of the assistant; at least one is expected")


def _marked(row: dict[str, Any], tokenizer: Any, where: str) -> list[Marked]:
    _check(row, where)
    if "messages" in row:
        return conversation(row["messages"], tokenizer, where)
    template = WITH_INPUT if row.get("input") else WITHOUT_INPUT
    prompt = template.format(instruction=row["instruction"], input=row.get("input"))
    return [Marked(prompt + row["output"], ((len(prompt), len(prompt) + len(row["output"])),), is_rendered=False)]


def conversation(messages: Sequence[dict[str, str]], tokenizer: Any, where: str) -> list[Marked]:
    """A conversation through the tokenizer's chat template, the assistant's messages marked.

    One text, or where the template writes earlier messages otherwise than the last one (as those do that drop its
    thoughts) one for each reply. InputError for a tokenizer without a template, and for one whose prompt is not the
    beginning of what it writes with the reply.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{where}: the tokenizer has no chat template; a chat model, or Alpaca's format, is expected")

    def rendered(count: int, prompt: bool) -> str:
        try:
            return tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # templates raise what they like
            raise InputError(f"{where}: the chat template refuses these messages ({one_line(error)})") from None

    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    texts = []
    for place in places:
        prompt, text = rendered(place, True), rendered(place + 1, False)
        if not text.startswith(prompt):
            raise InputError(f"{where}: the chat template's text with the reply does not begin with its prompt")
        texts.append((text, (len(prompt), len(text))))
    whole = texts[-1][0]
    if all(whole.startswith(text) for text, _ in texts):
        return [Marked(whole, tuple(span for _, span in texts), is_rendered=True)]
    return [Marked(text, (span,), is_rendered=True) for text, span in texts]


def _sample(marked: Marked, tokenizer: Any, cutoff: int) -> Sample:
    """Ids, and labels where a token ends within a reply."""
    encoded = tokenizer(
        marked.text,
        add_special_tokens=not marked.is_rendered,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    ids = list(encoded["input_ids"])
    replies = [any(first < end <= last for first, last in marked.replies) for _, end in encoded["offset_mapping"]]
    end_token = tokenizer.eos_token_id
    if not marked.is_rendered and end_token is not None:
        if ids[-1] == end_token:  # some tokenizers add it themselves
            replies[-1] = True
        else:
            ids.append(end_token)
            replies.append(True)
    row = numpy.asarray(ids[:cutoff], dtype=numpy.int64)
    return Sample(row, numpy.where(replies[:cutoff], row, IGNORED))
