"""How much memory a scoring pass takes beyond the model, and how large a pass fits in a limit.

Samples are independent and candidates are too, so either can be run in parts: the sums are the same, and the weights
are read once for each part.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyprune.errors import InputError
from pyprune.ops import native
from pyprune.scoring.layered_model import LayeredModel
from pyprune.scoring.measures import ComparingMeasure, LogitsMeasure, Measure, StateMeasure

ROWS = {"cpu": 1280, "cuda": 16384}
"""Rows that go through a block together: enough for GEMM to run at full speed, few enough for caches and memory."""

SKINNY_ROWS = native.constant("SKINNY_ROWS")
"""Up to this many rows go through a block in another way; a pass runs more, or some twice."""

FIXED = 24 << 20
"""What does not grow with anything: a tile of logits, the same of widened head weights, GEMM's own buffers."""


VOCABULARY_TILE = 512
"""Ids whose logits are compared together."""


@dataclass(frozen=True)
class Extra:
    """What a pass takes beyond its candidates' states and the sublayers: bytes that are fixed, for each row that is
    measured together, and for each row and slot of those; and slots that every part has beside its candidates'."""

    fixed: int = 0
    per_row: int = 0
    per_slot_row: int = 0
    slots: int = 0

    def of(self, slots: int, samples: int, tokens: int, rows: int) -> int:
        """Of a pass whose chunks have so many rows."""
        measured = min(max(rows // tokens, 1), samples) * tokens
        return self.fixed + measured * (self.per_row + slots * self.per_slot_row)


NOTHING = Extra()


@dataclass(frozen=True)
class PassSize:
    """How many samples and candidates run together, how many rows go through a block together, and the bytes that this
    takes beyond the model."""

    samples: int
    candidates: int
    rows: int
    bytes: int


def chunk_size(remaining: int, limit: int) -> int:
    """How many of the `remaining` sequences go through a block next: `limit`, or else the largest 2^k or 3 * 2^k.

    torch's GEMM on CPUs compiles code for each number of rows that it meets, and keeps it. With few numbers it stays
    little: with each remainder as one chunk it took 56 MB for sequences of 16 tokens.
    """
    if remaining >= limit:
        return limit
    power = 1 << (remaining.bit_length() - 1)
    return power + power // 2 if remaining >= power + power // 2 else power


def pass_bytes(model: LayeredModel, slots: int, samples: int, tokens: int, rows: int, padded: bool = False) -> int:
    """Bytes that a pass takes beyond the model: the states of all slots, and one chunk of rows at its widest."""
    states = slots * samples * tokens * model.hidden_size * model.state_dtype.itemsize
    chunk = max(min(max(rows // tokens, 1), slots * samples), SKINNY_ROWS // tokens + 1) * tokens
    return states + chunk * model.row_bytes(tokens, padded) + FIXED


def fit_pass(
    model: LayeredModel,
    shape: tuple[int, int],
    candidates: int,
    slots: int,
    limit: int | None,
    padded: bool = False,
    extra: Extra = NOTHING,
) -> PassSize:
    """The largest pass over samples `[S, T]` that fits in `limit` bytes (None: no limit).

    candidates: how many there are; slots: how many different states they end in (`schedule.count_slots`); extra: what
    measures and replacements take besides. Samples are split before candidates, which share prefixes. InputError with
    the least that is needed when even one candidate on one sample does not fit.
    """
    samples, tokens = shape
    weights = model.streamed_bytes()
    rows = ROWS.get(model.device.type, ROWS["cuda"])

    def needed(slots: int, samples: int, rows: int) -> int:
        slots += extra.slots
        states = pass_bytes(model, slots, samples, tokens, rows, padded)
        return states + weights + extra.of(slots, samples, tokens, rows)

    if limit is None:
        return PassSize(samples, candidates, rows, needed(slots, samples, rows))
    for chunk in (rows, tokens):  # full chunks while they fit, then one sequence at a time
        for part in _even_parts(samples):
            if needed(slots, part, chunk) <= limit:
                return PassSize(part, candidates, chunk, needed(slots, part, chunk))
    for part in _even_parts(candidates):
        if needed(min(part, slots), 1, tokens) <= limit:
            return PassSize(1, part, tokens, needed(min(part, slots), 1, tokens))
    raise InputError(
        f"memory: {limit / 1e6:.1f} MB given; one sample of {tokens} tokens of {model.name} needs"
        f" {needed(1, 1, tokens) / 1e6 + 0.1:.1f} MB beyond the model"
    )


def measuring_bytes(model: LayeredModel, kinds: Iterable[type[Measure]], held: int = 0) -> Extra:
    """What measures of these kinds take, and what replacements hold while they run (`Replacement.held_bytes`). What a
    module of the user's takes inside is not in it."""
    kinds = list(kinds)
    by_logits = sum(issubclass(kind, LogitsMeasure) for kind in kinds)
    per_row = tile_weights = 0
    if any(issubclass(kind, StateMeasure) for kind in kinds):
        per_row = 8 * 5 * model.hidden_size  # both states, their unit vectors, a difference: float64
    if by_logits:
        per_row = max(per_row, 8 * 5 * VOCABULARY_TILE)  # logits of both, both again in float64, exponentials
        tile_weights = 4 * VOCABULARY_TILE * model.hidden_size
    original = int(any(issubclass(kind, ComparingMeasure) for kind in kinds))
    return Extra(held + tile_weights, per_row, 6 * 8 * by_logits, original)


def _even_parts(count: int) -> list[int]:
    """Sizes of the largest part when `count` is cut into 1, 2, 3 .. parts as evenly as can be."""
    return list(dict.fromkeys(-(-count // parts) for parts in range(1, count + 1)))
