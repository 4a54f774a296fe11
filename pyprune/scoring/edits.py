"""What a candidate changes, as a set of edits of single sublayers. Numbers only: no weights, no torch.

An edit is one number: the index of its sublayer plus `ALTERNATIVE` times the number of what stands in its place.
Alternative 0 leaves the sublayer out, so a removal (`pyprune.scoring.removals`) is a set of edits as it is; what the
others mean stands in a table of replacements (`pyprune.scoring.replacements`). Sublayer 2b is the attention of a
model's b-th block, or its whole layer where layers are its smallest units, and 2b+1 its FFN.
"""

from __future__ import annotations

from collections.abc import Iterable

Edits = frozenset[int]
"""The edits of a candidate, at most one of each sublayer."""

NO_EDITS: Edits = frozenset()
"""The model as it is."""

ALTERNATIVE = 1 << 20
"""More than the sublayers of any model."""


def edit_of(sublayer: int, alternative: int) -> int:
    """The edit that puts an alternative, from 1, in a sublayer's place; alternative 0 leaves it out."""
    return sublayer + ALTERNATIVE * alternative


def sublayer_of(edit: int) -> int:
    """The sublayer that is edited."""
    return edit % ALTERNATIVE


def is_replacement(edit: int) -> bool:
    """Whether something stands in the sublayer's place."""
    return edit >= ALTERNATIVE


def effective(edits: Edits, present: frozenset[int]) -> Edits:
    """Without the removals of sublayers that are not present; a replacement may stand where there was nothing."""
    return frozenset(edit for edit in edits if is_replacement(edit) or edit in present)


def edits_before(edits: Edits, block: int) -> Edits:
    """The edits that come before a block."""
    return frozenset(edit for edit in edits if sublayer_of(edit) < 2 * block)


def edit_at(edits: Edits, sublayer: int) -> int | None:
    """The edit of a sublayer, None where it is left as it is."""
    return next((edit for edit in edits if sublayer_of(edit) == sublayer), None)


def first_sublayer(edits: Iterable[int]) -> int | None:
    """The first sublayer that is edited, None where none is."""
    return min(map(sublayer_of, edits), default=None)
