"""A text as windows: the token ids, which of them count, and how many bytes of text those stand for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.evaluation.protocol import PerplexityProtocol
from pyprune.models.load_any import AnyDecoder
from pyprune.scoring.calibration.sources import Source, Tokens
from pyprune.scoring.calibration.windows import Encoder
from pyprune.scoring.losses import IGNORED


@dataclass(frozen=True)
class TextWindows:
    """Token ids `[W, N]` int64, padded with 0 on the right; targets `[W, N-1]`, the token after each one, IGNORED where
    it does not count; the bytes of UTF-8 text `[W]` that the counted tokens stand for, None for token ids.

    `protocol`: with the window's length and the BOS rule as they were applied. `source`, `sha256`: of the text's token
    ids (little-endian int64, BOS tokens left out).
    """

    input_ids: Tensor
    targets: Tensor
    bytes: Tensor | None
    protocol: PerplexityProtocol
    source: str
    sha256: str

    def description(self) -> dict[str, Any]:
        """JSON data: where the tokens came from and how they were cut."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            **self.protocol.to_dict(),
            "windows": len(self.input_ids),
            "tokens": int((self.targets != IGNORED).sum()),
            "bytes": None if self.bytes is None else int(self.bytes.sum()),
        }


def windows_of(
    decoder: AnyDecoder,
    source: Source,
    protocol: PerplexityProtocol,
    *,
    tokens: int | None = None,
    tokenizer: Any = None,
) -> TextWindows:
    """The windows of a text by a protocol, for a decoder of which only sizes and tokenizer are looked at.

    tokens: at most so many from the beginning of the text, a BOS before it included. tokenizer: the decoder's own when
    None. Token ids are taken as they are, without a BOS. Raises InputError when the tokenizer is missing, does not fit
    the vocabulary or has no BOS for every window, and for a text shorter than a window.
    """
    length = protocol.text_length(decoder.max_positions)
    encoder = Encoder(decoder, source, tokenizer)
    ids, ends = _encoded(encoder, source)
    digest = hashlib.sha256(numpy.ascontiguousarray(ids, dtype="<i8").tobytes()).hexdigest()
    bos = _bos_token(encoder, source, protocol.bos)
    if bos is None:
        protocol = replace(protocol, bos="none")
    elif protocol.bos == "first":
        ids, ends = numpy.insert(ids, 0, bos), None if ends is None else numpy.insert(ends, 0, 0)
    if tokens is not None:
        ids, ends = ids[:tokens], None if ends is None else ends[:tokens]
    if len(ids) < length:
        limit = "" if tokens is None else f" (at most {tokens} were asked for)"
        raise InputError(
            f"{source.name}: {len(ids)} tokens{limit} do not fill a window of {length}; a longer text or a smaller"
            " window is expected"
        )
    places, counted = _places(len(ids), length, protocol.stride)
    rows = numpy.where(places < len(ids), ids[places.clip(max=len(ids) - 1)], 0)
    sizes = None
    if ends is not None:
        sizes = numpy.diff(ends, prepend=0)[places.clip(max=len(ids) - 1)] * counted
        sizes = sizes.sum(1) if protocol.bos == "each" else sizes[:, 1:].sum(1)  # nothing predicts a first token
    if protocol.bos == "each" and bos is not None:
        rows, counted = numpy.insert(rows, 0, bos, axis=1), numpy.insert(counted, 0, False, axis=1)
    targets = numpy.where(counted, rows, IGNORED)[:, 1:]
    predicting = (targets != IGNORED).any(1)  # a last window of one token predicts nothing
    return TextWindows(
        torch.from_numpy(rows[predicting]),
        torch.from_numpy(targets[predicting]),
        None if sizes is None else torch.from_numpy(sizes[predicting]),
        replace(protocol, window=rows.shape[1]),
        source.name,
        digest,
    )


def _encoded(encoder: Encoder, source: Source) -> tuple[numpy.ndarray, numpy.ndarray | None]:
    """The ids `[tokens]` of a text tokenised whole, without special tokens, and how many of its bytes are over after
    each of them; None for token ids, whose text is not known."""
    if isinstance(source, Tokens):
        return encoder.stream(), None
    tokenizer, text = encoder.tokenizer(), source.packed()
    if not getattr(tokenizer, "is_fast", False):
        ids = encoder.ids(text)
        # It does not say where its tokens lie in the text: each gets the same share of the bytes.
        return ids, numpy.round(numpy.arange(1, len(ids) + 1) * (len(text.encode()) / max(1, len(ids)))).astype("int64")
    encoding = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    ids = encoder.in_vocabulary(numpy.asarray(encoding["input_ids"], dtype=numpy.int64))
    last_characters = numpy.asarray([end for _, end in encoding["offset_mapping"]], dtype=numpy.int64)
    # Pieces of one character all end behind it: its bytes are those of the first piece.
    last_characters = numpy.maximum.accumulate(last_characters) if len(ids) else last_characters
    return ids, _byte_ends(text)[last_characters]


def _byte_ends(text: str) -> numpy.ndarray:
    """How many bytes of UTF-8 the first 0, 1, 2 .. characters take, int64 `[characters + 1]`."""
    codes = numpy.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    sizes = 1 + (codes >= 0x80).astype("int64") + (codes >= 0x800) + (codes >= 0x10000)
    return numpy.concatenate([[0], sizes.cumsum()])


def _bos_token(encoder: Encoder, source: Source, rule: str) -> int | None:
    """The BOS token that the rule places; None where it places none."""
    if rule == "each":
        if isinstance(source, Tokens):
            raise InputError("bos each: token ids get no BOS token; first and none are accepted")
        return int(encoder.in_vocabulary(numpy.array([encoder.bos_token()]))[0])
    if rule == "none" or isinstance(source, Tokens):
        return None
    token = getattr(encoder.tokenizer(), "bos_token_id", None)
    return None if token is None else int(encoder.in_vocabulary(numpy.array([token]))[0])


def _places(tokens: int, length: int, stride: int | None) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Where in a text of `tokens` tokens the positions of each window lie `[W, length]`, and which are new there: in
    the text, and in no window before."""
    if stride is None:
        starts, stride = numpy.arange(tokens // length) * length, length
    else:
        starts = numpy.arange(1 + -(-(tokens - length) // stride)) * stride
    places = starts[:, None] + numpy.arange(length)
    ends_before = starts + (length - stride)
    ends_before[0] = 0
    return places, (places < tokens) & (places >= ends_before[:, None])
