"""Plain text as training samples: windows of the packed documents."""

from __future__ import annotations

from typing import Any

import numpy

from pyprune.errors import InputError
from pyprune.models.load_any import AnyDecoder
from pyprune.retraining.samples import Sample, text_sample
from pyprune.scoring.calibration.sources import Source, Text, read_source
from pyprune.scoring.calibration.windows import Encoder


def text_samples(
    decoder: AnyDecoder, text: Text | Source | Any, cutoff: int, *, field: str | None = None, tokenizer: Any = None
) -> tuple[list[Sample], str]:
    """The non-overlapping windows of `cutoff` tokens of a text, in order, and the text's name.

    text: whatever `calibration` takes. A partial last window is dropped. InputError for a text without one window.
    """
    source = read_source(text, field)
    ids = Encoder(decoder, source, tokenizer).stream()
    windows = len(ids) // cutoff
    if not windows:
        raise InputError(f"{source.name}: {len(ids)} tokens; at least one window of {cutoff} (cutoff) is expected")
    rows = numpy.asarray(ids[: windows * cutoff], dtype=numpy.int64).reshape(windows, cutoff)
    return [text_sample(row) for row in rows], source.name
