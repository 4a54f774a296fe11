"""Training texts that hold nothing that the model was calibrated on or is to be judged by.

Of `demo:lambada` and `demo:passages` the documents go that calibration drew from, and those that quote them or a text
that the model is judged by. The documents of the paper's seven tasks are not trained on: `demo:boolq`, which is
evaluation text, is refused, and so are the tasks' datasets but for their training splits.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from pyprune.errors import InputError
from pyprune.models.load_any import AnyDecoder
from pyprune.retraining.overlap import word_runs
from pyprune.scoring.calibration import hub
from pyprune.scoring.calibration.demonstrations import CALIBRATION, EVALUATION, TRAINING, demonstration
from pyprune.scoring.calibration.sources import GAP, Source, Texts
from pyprune.scoring.calibration.windows import drawn_places

TASKS = ("boolq", "piqa", "hellaswag", "winogrande", "ai2_arc", "openbookqa")
"""The datasets of the seven tasks, as the last part of their names or as a configuration (ARC's two are one)."""


@dataclass(frozen=True)
class Drawn:
    """A calibration: `samples` windows of `seq_len` tokens, drawn by `seed` from `demo:lambada` by these rules."""

    samples: int
    seq_len: int
    seed: int = 0
    packing: str = "packed"
    bos: str = "none"

    @classmethod
    def parse(cls, text: str) -> Drawn:
        """From "10x128", or "10x128@7" with a seed of 7. InputError for anything else."""
        match = re.fullmatch(r"([1-9][0-9]{0,6})x([1-9][0-9]{0,5})(?:@([0-9]{1,9}))?", text.strip(), re.ASCII)
        if match is None:
            raise InputError(
                f"calibrated {text!r}: SAMPLESxTOKENS, such as 10x128, or with a seed 10x128@7, is expected"
            )
        return cls(int(match[1]), int(match[2]), int(match[3] or 0))


DRAWN = (Drawn(10, 128), Drawn(128, 128), Drawn(256, 128))
"""What scoring draws unless it is told otherwise, and what a repair on `demo:lambada` probably drew."""


QUOTED = 8
"""Words in a row that two passages must share for one to quote the other."""


def require_clean(text: Any) -> None:
    """Raise InputError for a text by which models are judged."""
    if not isinstance(text, (str, os.PathLike)):
        return
    name = os.fspath(text)
    if name == EVALUATION:
        raise InputError(
            f"{name}: belongs to an evaluation task; {TRAINING}, {CALIBRATION} or a text of your own is expected"
        )
    if name.startswith(hub.PREFIX):
        dataset = hub.parse_name(name)
        names = (re.split(r"[/\\]", dataset.name)[-1], dataset.config or "")
        if any(part.lower() in TASKS for part in names) and not dataset.split.startswith(hub.SPLIT):
            raise InputError(f"{name}: belongs to an evaluation task; its split train is expected")


def cleaned(
    decoder: AnyDecoder, text: Any, drawn: Sequence[Drawn], tokenizer: Any = None, held_out: Source | None = None
) -> Any:
    """The text; of `demo:lambada` and `demo:passages` without what those calibrations drew and what quotes it, the
    BoolQ passages or the held-out text."""
    if not isinstance(text, (str, os.PathLike)) or (chosen := os.fspath(text)) not in (CALIBRATION, TRAINING):
        return text
    source, calibration, judged = (demonstration(name).documents() for name in (chosen, CALIBRATION, EVALUATION))
    gone = {calibration[row] for row in drawn_rows(calibration, tokenizer or decoder.tokenizer(), drawn)}
    unclean = [*gone, *judged, *(held_out.documents if isinstance(held_out, Texts) else ())]
    kept = [document for document in without_quotes(source, unclean) if document not in gone]
    removed = len(source) - len(kept)
    name = demonstration(chosen).source
    return Texts(f"{name}, without {removed} documents of calibration or held-out text", kept)


def drawn_rows(documents: Sequence[str], tokenizer: Any, drawn: Sequence[Drawn]) -> set[int]:
    """The numbers of the documents that those windows of the text overlap.

    InputError where the text has fewer windows than were drawn.
    """
    rows: set[int] = set()
    packed = [draw for draw in drawn if draw.packing == "packed"]
    if packed:
        encoded = tokenizer(GAP.join(documents), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for draw in packed:
            rows |= _packed_rows(documents, encoded["offset_mapping"], draw)
    for draw in drawn:
        if draw not in packed:
            rows |= _single_rows(documents, tokenizer, draw)
    return rows


def _packed_rows(documents: Sequence[str], offsets: Sequence[tuple[int, int]], draw: Drawn) -> set[int]:
    """Those of windows of all documents one after another; offsets: where its tokens begin and end."""
    ends, end = [], -len(GAP)
    for document in documents:
        end += len(GAP) + len(document)
        ends.append(end)
    before, length = int(draw.bos == "first"), draw.seq_len - (draw.bos == "each")
    windows = (before + len(offsets)) // length
    if windows < draw.samples:
        raise InputError(f"calibrated {draw.samples}x{draw.seq_len}: the text has {windows} windows of {length} tokens")
    rows: set[int] = set()
    for place in drawn_places(windows, draw.samples, draw.seed).tolist():
        tokens = offsets[max(0, place * length - before) : (place + 1) * length - before]
        rows |= _overlapping(tokens[0][0], tokens[-1][1], ends, documents)
    return rows


def _single_rows(documents: Sequence[str], tokenizer: Any, draw: Drawn) -> set[int]:
    """Those of a window each of random documents that fill one (`windows.draw_documents`)."""
    length, generator = draw.seq_len - (draw.bos == "each"), numpy.random.default_rng(draw.seed)
    rows: set[int] = set()
    for row in generator.permutation(len(documents)).tolist():
        tokens = len(tokenizer(documents[row], add_special_tokens=False, verbose=False)["input_ids"])
        if tokens >= length:
            generator.integers(tokens - length + 1)  # where the window begins
            rows.add(row)
        if len(rows) == draw.samples:
            return rows
    raise InputError(
        f"calibrated {draw.samples}x{draw.seq_len}: {len(rows)} documents of the text have {length} tokens"
    )


def quoting_rows(documents: Sequence[str], texts: Iterable[str]) -> set[int]:
    """The numbers of the documents that share a run of QUOTED words with one of the texts."""
    runs = {run for text in texts for run in word_runs(text, QUOTED)}
    return {row for row, text in enumerate(documents) if any(run in runs for run in word_runs(text, QUOTED))}


def without_quotes(documents: Sequence[str], texts: Iterable[str]) -> list[str]:
    """The documents that share no run of QUOTED words with one of the texts."""
    quoting = quoting_rows(documents, texts)
    return [document for row, document in enumerate(documents) if row not in quoting]


def _overlapping(first: int, last: int, ends: Sequence[int], documents: Sequence[str]) -> set[int]:
    """Documents that have a character in [first, last) of the packed text; `ends`: where each of them ends."""
    begins = bisect_right(ends, first)
    stops = bisect_left(ends, last)
    rows = set(range(begins, min(stops + 1, len(documents))))
    return {row for row in rows if ends[row] - len(documents[row]) < last}
