"""Text to windows of token ids: calibration samples, and held-out windows for evaluation.

Calibration follows the paper's section 4 (10 samples of 128 tokens); evaluation windows follow its perplexity protocol:
non-overlapping windows of 128 tokens, one BOS before the first, a partial last window dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
import torch

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.models.load_any import AnyDecoder
from pyprune.scoring.calibration import demonstrations
from pyprune.scoring.calibration.fingerprint import DEFAULTS, fingerprint
from pyprune.scoring.calibration.sources import Source, Text, Tokens, read_source

PACKINGS = ("packed", "documents")
"""All documents one after another, cut into windows; or one random window of each of some documents."""
BOS_RULES = ("none", "first", "each")
"""No beginning-of-sequence token; one before all of the text; or one at the beginning of each window."""


@dataclass(frozen=True)
class Windows:
    """Token ids `[samples, seq_len]` int64 and the fingerprint that says where they came from.

    `fingerprint`: `{"sha256" (of the little-endian int64 ids), "samples", "seq_len", "seed", "source"}`, and "packing"
    and "bos" where they are not "packed" and "none".
    """

    input_ids: torch.Tensor
    fingerprint: dict[str, Any]


def calibration(
    decoder: Decoder,
    text: Text | torch.Tensor | numpy.ndarray | Source | None = None,
    samples: int = 10,
    seq_len: int = 128,
    seed: int = 0,
    tokenizer: Any = None,
    *,
    field: str | None = None,
    packing: str = "packed",
    bos: str = "none",
) -> Windows:
    """Calibration windows `[samples, seq_len]` of whatever `read_source` reads, or of the demonstration text for None.

    packing: "packed", all documents one after another, cut into windows of which `samples` are drawn (a plain text file
    counts as one, tokenised whole); "documents", a random window of each of `samples` documents drawn among those that
    fill one, shorter ones being passed over. bos: "none", "first" (one before all of the text; packed only) or "each"
    (every window begins with one, and `seq_len - 1` tokens of text follow). field: the key or column that holds the
    text.

    `tokenizer`: the decoder's own when None, which for a GGUF file takes seconds to load. A `shape:` model has no
    tokenizer and gets random token ids where no text is given. Raises InputError for a text that is missing, empty or
    too short. Source of the sizes, and of a random window a document: the paper, section 4, Data.
    """
    check_window_options(samples, seq_len, seed, packing, bos)
    if seq_len > decoder.max_positions:
        raise InputError(f"seq-len {seq_len}: at most {decoder.name}'s context, {decoder.max_positions}, is accepted")
    if text is None and is_random(decoder):
        for name, value, default in (("field", field, None), ("packing", packing, "packed"), ("bos", bos, "none")):
            if value != default:
                raise InputError(f"{name} {value}: {decoder.name} gets random token ids; it belongs to a text")
        return random_windows(decoder.vocab_size, samples, seq_len, seed)
    source = read_source(text if text is not None else demonstrations.CALIBRATION, field)
    encoder = Encoder(decoder, source, tokenizer)
    bos_token = None if bos == "none" else encoder.bos_token()
    if packing == "documents":
        return draw_documents(encoder, samples, seq_len, seed, bos_token)
    return draw_windows(encoder.stream(), samples, seq_len, seed, source.name, bos_token, bos)


def evaluation(
    decoder: Decoder,
    text: Text | torch.Tensor | numpy.ndarray | Source | None = None,
    tokens: int | None = None,
    seq_len: int = 128,
    seed: int = 0,
    tokenizer: Any = None,
) -> Windows:
    """Held-out windows `[windows, seq_len]`, in order: one BOS before the first, the partial last one dropped.

    At most `tokens` tokens are kept (all when None). `text`, `tokenizer` and `shape:` models as in `calibration`; token
    ids are taken as they are, without a BOS. Raises InputError for a missing or empty text and for one shorter than a
    window.
    """
    limit = None if tokens is None else tokens // seq_len
    if limit is not None and limit < 1:
        raise InputError(f"evaluation tokens {tokens}: at least one window of {seq_len} tokens is expected")
    if text is None and is_random(decoder):
        return random_windows(decoder.vocab_size, limit or 1, seq_len, [seed, 1])
    source = read_source(text if text is not None else demonstrations.EVALUATION)
    encoder = Encoder(decoder, source, tokenizer)
    ids = encoder.stream()
    bos_token = None if isinstance(source, Tokens) else getattr(encoder.tokenizer(), "bos_token_id", None)
    if bos_token is not None:
        ids = _with_bos(ids, bos_token)
    count = len(ids) // seq_len
    if count < (limit or 1):
        raise InputError(f"{source.name}: {len(ids)} tokens; the evaluation needs {(limit or 1) * seq_len}")
    windows = ids[: min(count, limit or count) * seq_len].reshape(-1, seq_len)
    return _windows(windows, seed=None, source=source.name)


class Encoder:
    """Documents to token ids of a decoder's vocabulary. The tokenizer is loaded when first needed; token ids need
    none."""

    def __init__(self, decoder: AnyDecoder, source: Source, tokenizer: Any = None) -> None:
        self.source = source
        self._decoder = decoder
        self._tokenizer = tokenizer

    def tokenizer(self) -> Any:
        """The tokenizer that was given, or the decoder's own."""
        self._tokenizer = self._tokenizer or self._decoder.tokenizer()
        return self._tokenizer

    def bos_token(self) -> int:
        """The id of the beginning-of-sequence token; InputError when the tokenizer has none."""
        bos_token = getattr(self.tokenizer(), "bos_token_id", None)
        if bos_token is None:
            raise InputError(f"bos: the tokenizer of {self._decoder.name} has no such token; none is accepted")
        return bos_token

    def stream(self) -> numpy.ndarray:
        """All documents one after another `[tokens]`; text is tokenised whole, without special tokens."""
        if isinstance(self.source, Tokens):
            return self.in_vocabulary(numpy.concatenate(self.source.documents))
        return self.ids(self.source.packed())

    def ids(self, document: str | numpy.ndarray) -> numpy.ndarray:
        """One document's ids `[tokens]` int64, without special tokens."""
        if isinstance(document, numpy.ndarray):
            return self.in_vocabulary(document)
        ids = self.tokenizer()(document, add_special_tokens=False, verbose=False)["input_ids"]
        return self.in_vocabulary(numpy.asarray(ids, dtype=numpy.int64))

    def in_vocabulary(self, ids: numpy.ndarray) -> numpy.ndarray:
        """The ids, if the model has embeddings for all of them; else InputError."""
        if not ids.size:
            return ids
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self._decoder.vocab_size:
            raise InputError(
                f"{self.source.name}: token id {low if low < 0 else high} is outside the model's vocabulary of "
                f"{self._decoder.vocab_size}; the tokenizer and the weights must belong together"
            )
        return ids


def draw_windows(
    ids: numpy.ndarray,
    samples: int,
    seq_len: int,
    seed: int,
    source: str,
    bos_token: int | None = None,
    bos: str = "none",
) -> Windows:
    """`samples` of the non-overlapping windows of `ids [tokens]`, without replacement, in order of position.

    `bos_token`: the BOS token that the rule `bos` places; without one, none is placed. Raises InputError when there are
    fewer windows than samples.
    """
    if bos_token is None:
        bos = "none"
    elif bos == "first":
        ids = _with_bos(ids, bos_token)
    length = seq_len - (bos == "each")  # of the text in a window
    count = len(ids) // length
    if count < samples:
        raise InputError(
            f"{source}: {len(ids)} tokens give {count} windows of {length} tokens; "
            f"{samples} samples need {samples * length} tokens"
        )
    drawn = ids[: count * length].reshape(count, length)[drawn_places(count, samples, seed)]
    if bos_token is not None and bos == "each":
        drawn = _each_with_bos(drawn, bos_token)
    return _windows(drawn, seed, source, bos=bos)


def drawn_places(windows: int, samples: int, seed: int) -> numpy.ndarray:
    """Which of so many windows `draw_windows` draws, in order."""
    return numpy.sort(numpy.random.default_rng(seed).choice(windows, size=samples, replace=False))


def draw_documents(encoder: Encoder, samples: int, seq_len: int, seed: int, bos_token: int | None = None) -> Windows:
    """A random window of each of `samples` random documents that fill one, in order of the documents.

    A shorter document is passed over: nothing is padded, so that every position of every sample counts. `bos_token`:
    the BOS token for each window to begin with. Raises InputError when too few documents are long enough.
    """
    documents, length = encoder.source.documents, seq_len - (bos_token is not None)
    generator = numpy.random.default_rng(seed)
    windows: dict[int, numpy.ndarray] = {}  # by the document's number
    # In random order, and only as far as needed: of a large collection few documents are tokenised.
    for number in generator.permutation(len(documents)).tolist():
        ids = encoder.ids(documents[number])
        if len(ids) >= length:
            first = int(generator.integers(len(ids) - length + 1))
            windows[number] = ids[first : first + length]
        if len(windows) == samples:
            break
    else:
        raise InputError(
            f"{encoder.source.name}: {len(windows)} of {len(documents)} documents have {length} tokens or more;"
            f" {samples} samples need as many (a smaller seq-len, or packing packed)"
        )
    drawn = numpy.stack([windows[number] for number in sorted(windows)])
    if bos_token is not None:
        drawn = _each_with_bos(drawn, bos_token)
    rules = {"packing": "documents", "bos": "none" if bos_token is None else "each"}
    return _windows(drawn, seed, encoder.source.name, **rules)


def random_windows(vocab_size: int, samples: int, seq_len: int, seed: int | list[int]) -> Windows:
    """Uniform random token ids `[samples, seq_len]`, the same for the same seed; for models without a tokenizer."""
    ids = numpy.random.default_rng(seed).integers(0, vocab_size, size=(samples, seq_len), dtype=numpy.int64)
    return _windows(ids, seed=seed, source="random token ids")


def is_random(decoder: Decoder) -> bool:
    """Whether the decoder is one of the named random shapes, which have no tokenizer."""
    return decoder.tokenizer_source is None and decoder.name.startswith("shape:")


def check_window_options(
    samples: int, seq_len: int, seed: int, packing: str = DEFAULTS["packing"], bos: str = DEFAULTS["bos"]
) -> None:
    """Raise InputError unless samples >= 1, seq_len >= 2 (a prediction needs a token before it), seed >= 0, and the
    rules are known and go together."""
    for name, value, minimum in (("samples", samples, 1), ("seq-len", seq_len, 2), ("seed", seed, 0)):
        if value < minimum:
            raise InputError(f"{name} {value}: an integer of at least {minimum} is expected")
    for name, rule, accepted in (("packing", packing, PACKINGS), ("bos", bos, BOS_RULES)):
        if rule not in accepted:
            raise InputError(f"{name} {rule!r}: {', '.join(accepted)} are accepted")
    if packing == "documents" and bos == "first":
        raise InputError("bos first: belongs to packing packed; with packing documents, none and each are accepted")


def _with_bos(ids: numpy.ndarray, bos_token: int) -> numpy.ndarray:
    return numpy.concatenate([numpy.array([bos_token], dtype=numpy.int64), ids])


def _each_with_bos(windows: numpy.ndarray, bos_token: int) -> numpy.ndarray:
    return numpy.insert(windows, 0, bos_token, axis=1)


def _windows(ids: numpy.ndarray, seed: int | list[int] | None, source: str, **rules: str) -> Windows:
    return Windows(torch.from_numpy(numpy.array(ids, dtype=numpy.int64)), fingerprint(ids, seed, source, **rules))
